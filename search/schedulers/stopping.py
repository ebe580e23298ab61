"""`--time-limit`: a search that ends at a given time, with the front it has found by then."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from configs.parsing import parse_duration
from runners.trial import EpochReport, Trial, TrialResult
from search.reporting.wording import plural
from search.results.result import SearchResult
from spaces.errors import SlimfrontError

if TYPE_CHECKING:
    from search.schedulers.screening import Screened
    from search.tuner import Study


class TimeLimitError(SlimfrontError):
    """A time limit that leaves no trial."""


class Deadline:
    """When a search is to end; the time counts from the moment that this is made.

    Args:
        limit: such as "1h30m"; empty never ends.
        clock: gives seconds.

    Raises:
        ConfigError: a text that is no time above 0.
    """

    def __init__(self, limit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._end = clock() + parse_duration("--time-limit", limit) if limit else float("inf")

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return self._clock() >= self._end

    def check(self, where: str) -> None:
        """Raise TimeLimitError when the time is over before a trial could begin; `where` says what was going on."""
        if self.over:
            raise TimeLimitError(
                f"the time limit of {self.limit} was over {where}, before any trial: there is no front; give a longer "
                "--time-limit, fewer --dense-epochs, or trained --weights"
            )


class TimeLimited:
    """Hands out the trials of a study until the time is over (implements `runners.AskTell`).

    From then on there are no new trials, and running ones end at their next report, as STOPPED, with the network that
    they have by then. The first trial, which is the uniform arm, begins and ends whatever the time: without it there
    would be neither a front nor anything to compare with.

    Args:
        through: what the study's trials go through on their way to a runner and back; None hands them on as they are.

    Attributes:
        ended: whether the time limit has kept or cut trials of the study.
    """

    def __init__(self, study: "Study", deadline: Deadline, through: "Screened | None" = None) -> None:
        self.study = study
        self._source = through or study
        self.ended = False
        self._deadline = deadline
        self._exempt: int | None = None
        self._begun = bool(study.results)  # an earlier search has its uniform arm

    def ask(self) -> Trial | None:
        """Return the study's next trial, or None when the time is over."""
        if self._begun and self._deadline.over:
            self.ended = self.ended or self._source.unfinished
            return None
        trial = self._source.ask()
        if trial is not None and not self._begun:
            self._begun, self._exempt = True, trial.number
        return trial

    def report(self, report: EpochReport) -> bool:
        """Return whether the trial goes on."""
        go_on = self._source.report(report)
        if self._deadline.over and report.trial != self._exempt:
            self.ended = True
            return False
        return go_on

    def tell(self, result: TrialResult) -> None:
        """Tell the study."""
        self._source.tell(result)


def ending(result: SearchResult) -> str:
    """Say what ended a search before all its trials were done; empty when nothing did."""
    trials = plural(len(result.results), "finished trial")
    if result.interrupted:
        return f"Stopped early: {trials}, the front and the report are kept."
    if not result.time_limited:
        return ""
    text = f"The time limit of {result.config['time_limit']} ended the search after {trials}"
    return f"{text}." if len(result.front) else f"{text}, none of which gave a network inside the budgets."
