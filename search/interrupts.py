"""Interrupts: a Ctrl-C that cannot get lost.

Python raises KeyboardInterrupt at whatever line the main thread runs. In a Python callback that compiled code calls, as
Ray does while it waits, the exception is printed and dropped, and the search would go on for hours.
"""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """Remembers a Ctrl-C inside its `with` block, so that `check` raises KeyboardInterrupt again if it was dropped.

    In any other thread than the main one, to which Python delivers no signals, it does nothing.
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
