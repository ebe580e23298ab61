"""Screening, the rung before any training: candidates are cut and compared, and the best of them is trained.

ResNet-20 on cluttered_digits at 8% of its FLOPs, 29 random width vectors cut by di: the accuracy right after the cut
takes a twentieth of the time of 2 epochs and ranks what these lead to with Spearman's 0.74, where the accuracy after
the first of them gives 0.51.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runners.trial import EpochReport, TrainingSegment, Trial, TrialResult
from search.results.pareto import measured, objectives
from search.results.screening_correlation import (
    SCREENED,
    SCREENED_ACCURACY,
    UNSCREENED,
    audit_screening,
    misleads,
    switched_off,
)

if TYPE_CHECKING:
    from search.tuner import Study

_log = logging.getLogger(__name__)


class Screened:
    """Hands out what of several candidates is best before training (implements `runners.AskTell`).

    A new candidate and its rivals go to the runner as trials of no epochs, all under its number, one to each worker
    that asks; a worker for which none is left begins the next pool. When all are told, the most accurate is the trial.

    Args:
        size: candidates of which one is trained; 1 trains them all.
    """

    def __init__(self, study: "Study", size: int) -> None:
        self.study = study
        self._size = size
        self._off = switched_off(study.results)
        self._pools: dict[int, _Pool] = {}
        self._waiting: list[Trial] = []  # members of pools, not given out yet
        self._ready: list[Trial] = []  # the best of their pools
        self._notes: dict[int, _Outcome] = {}  # of trials that are given out and not told

    @property
    def unfinished(self) -> bool:
        """Whether there is more to give out."""
        return bool(self._pools or self._ready) or self.study.unfinished

    def ask(self) -> Trial | None:
        """Return the best of a pool, else a member of one, else the study's next trial; None may mean none yet."""
        if self._ready:
            return self._ready.pop(0)
        if not self._waiting and (trial := self._next()) is not None:
            return trial
        return dataclasses.replace(self._waiting.pop(0), segment=TrainingSegment(0)) if self._waiting else None

    def report(self, report: EpochReport) -> bool:
        """Ask the study whether the trial goes on."""
        return self.study.report(report)

    def tell(self, result: TrialResult) -> None:
        """Tell the study of a trial; of a member of a pool nobody is told but that pool."""
        number = result.trial.number
        pool = self._pools.get(number)
        if pool is None:
            outcome = self._notes.pop(number, None)
            self.study.tell(result if outcome is None else outcome.noted(result))
            return
        pool.told[result.trial.key()] = result
        if len(pool.told) < len(pool.members):
            return
        del self._pools[number]
        best = pool.best()
        self.study.settle(best)
        self._notes[number] = pool.outcome(best)
        self._ready.append(best)

    def _next(self) -> Trial | None:
        """Return the study's next trial, or None when there is none or it is compared with others first."""
        trial = self.study.ask()
        if trial is None or self._size == 1:
            return trial
        rivals = self.study.rivals(trial, self._rivals_of(trial))
        if rivals:
            self._pools[trial.number] = _Pool([trial, *rivals])
            self._waiting += [trial, *rivals]
            return None
        return trial

    def _rivals_of(self, trial: Trial) -> int:
        """Return how many rivals a trial may have; none once the accuracy before training has misled."""
        if not self._off:
            audit = audit_screening(self.study.results, self.study.settings.rungs)
            if audit is not None and misleads(audit):
                self._off = True
                _log.warning(
                    "the accuracy before training does not rank networks as the end of training does (rank correlation "
                    "%.2f over %d trials): from now on every candidate is trained",
                    audit.correlation,
                    audit.trials,
                )
        if self._off and self.study.is_screenable(trial):
            self._notes[trial.number] = _Outcome({UNSCREENED: True}, 0.0, 0.0)
        return 0 if self._off else self._size - 1


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What the screening of a trial leaves in its result."""

    note: dict[str, float | int | bool]
    seconds: float
    train_seconds: float

    def noted(self, result: TrialResult) -> TrialResult:
        """Return the result with its screening: the time of all that it was compared with is its own."""
        return dataclasses.replace(
            result,
            note={**result.note, **self.note},
            seconds=result.seconds + self.seconds,
            train_seconds=result.train_seconds + self.train_seconds,
        )


class _Pool:
    """Candidates under one number, of which one will be trained; `told` has the results by key."""

    def __init__(self, members: Sequence[Trial]) -> None:
        self.members = tuple(members)
        self.told: dict[str, TrialResult] = {}

    def best(self) -> Trial:
        """Return the most accurate; of equals the first, and of failed ones too."""
        return max(self.members, key=lambda each: self._accuracy(each))

    def outcome(self, best: Trial) -> _Outcome:
        """Return what the trial's result is to say."""
        note: dict[str, float | int | bool] = {SCREENED: len(self.members)}
        if (accuracy := self._accuracy(best)) >= 0:
            note[SCREENED_ACCURACY] = accuracy
        results = self.told.values()
        return _Outcome(note, sum(each.seconds for each in results), sum(each.train_seconds for each in results))

    def _accuracy(self, member: Trial) -> float:
        """Return the accuracy in [0, 1], or -1 of what failed."""
        result = self.told[member.key()]
        return objectives(result)[1] if measured(result) else -1.0
