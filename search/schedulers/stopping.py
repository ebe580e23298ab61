"""Stopping criteria: when a search ends before all its trials are done."""

import time
from collections.abc import Callable

from spaces.errors import NoTrialError

# Returns whether the search is to end now: no trial begins any more, and running ones end at their next report.
StoppingCriterion = Callable[[], bool]


class TimeLimitError(NoTrialError):
    """A time limit that leaves no trial."""


class TimeLimit:
    """A stopping criterion: ends a search after a time, which counts from the creation of this object.

    Args:
        text: the limit as the user wrote it, such as "1h30m"; it only appears in messages.
        seconds: the limit; infinite never ends a search.
        clock: returns seconds.
    """

    def __init__(self, text: str, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._text, self._clock = text, clock
        self._end = clock() + seconds

    def __call__(self) -> bool:
        """Return whether the time is over."""
        return self._clock() >= self._end

    @property
    def left(self) -> float:
        """The seconds that are left, at least 0."""
        return max(0.0, self._end - self._clock())

    def part(self, share: float) -> StoppingCriterion:
        """Return the criterion that is met after a share of the time that is left now."""
        now = self._clock()
        end = now + share * (self._end - now)
        return lambda: self._clock() >= end

    def check(self, where: str) -> None:
        """Raise TimeLimitError if the time is over before any trial; `where` is such as "after epoch 3 of 9"."""
        if self():
            raise TimeLimitError(
                f"the time limit of {self._text} was over {where}, before any trial: there is no front; give a longer "
                "--time-limit, fewer --dense-epochs, or trained --weights"
            )
