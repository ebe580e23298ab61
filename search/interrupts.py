"""Ctrl-C that cannot get lost.

Python raises KeyboardInterrupt wherever the main thread is. Inside a callback of compiled code, as Ray's waiting is,
the exception is printed and dropped, and the search would go on for hours.
"""

import signal
import threading
from types import FrameType
from typing import Any

from runners.base import AskTell
from runners.trial import EpochReport, Trial, TrialResult


class Interruptible:
    """Hands on trials (implements `runners.AskTell`); within its context a Ctrl-C is raised again if it was dropped.

    Outside of the main thread, where Python delivers no signals, it only hands on.
    """

    def __init__(self, trials: AskTell) -> None:
        self._trials = trials
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> "Interruptible":
        """Note every Ctrl-C from here on."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        """Leave Ctrl-C to whom it belonged before."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        raise KeyboardInterrupt

    def ask(self) -> Trial | None:
        """Return the next trial.

        Raises:
            KeyboardInterrupt: there was a Ctrl-C.
        """
        self._check()
        return self._trials.ask()

    def report(self, report: EpochReport) -> bool:
        """Return whether the trial goes on; raises as `ask` does."""
        self._check()
        return self._trials.report(report)

    def tell(self, result: TrialResult) -> None:
        """Tell the result, which is not lost; then raises as `ask` does."""
        self._trials.tell(result)
        self._check()

    def _check(self) -> None:
        if self._asked:
            raise KeyboardInterrupt
