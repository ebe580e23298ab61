"""Interrupts: a Ctrl-C that cannot get lost.

Python raises KeyboardInterrupt wherever the main thread is. Inside a callback of compiled code, as Ray's waiting is,
the exception is printed and dropped, and the search would go on for hours.
"""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """Remembers a Ctrl-C within its context, so that `check` raises it again if it was dropped.

    Outside of the main thread, where Python delivers no signals, it remembers nothing.
    """

    def __init__(self) -> None:
        self._interrupted = False
        self._before: Any = None

    def __enter__(self) -> "Interrupts":
        """Remember every Ctrl-C from here on."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        """Put back the handler that was there before."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was a Ctrl-C."""
        if self._interrupted:
            raise KeyboardInterrupt

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupted = True
        raise KeyboardInterrupt
