"""Stopping criteria: when a search ends before all its trials are done."""

import time
from collections.abc import Callable
from typing import Protocol

from spaces.errors import SlimfrontError


class StoppingCriterion(Protocol):
    """Tells whether a search is to end: no trial begins any more, and running ones end at their next report."""

    def __call__(self) -> bool:
        """Return whether the search is to end now."""
        ...


class TimeLimitError(SlimfrontError):
    """A time limit that leaves no trial."""


class TimeLimit(StoppingCriterion):
    """Ends a search after a time, which counts from the moment that this is made.

    Args:
        text: as the user wrote it, such as "1h30m"; empty never ends.
        seconds: the same; infinite never ends.
        clock: gives seconds.
    """

    def __init__(self, text: str, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._text, self._clock = text, clock
        self._end = clock() + seconds

    def __call__(self) -> bool:
        """Return whether the time is over."""
        return self._clock() >= self._end

    def check(self, where: str) -> None:
        """Raise TimeLimitError when the time is over before a trial could begin; `where` says what was going on."""
        if self():
            raise TimeLimitError(
                f"the time limit of {self._text} was over {where}, before any trial: there is no front; give a longer "
                "--time-limit, fewer --dense-epochs, or trained --weights"
            )
