"""Screening, the rung before any training: candidates are cut and compared, and the best of them is trained.

ResNet-20 on cluttered_digits at 8% of its FLOPs, 29 random width vectors cut by di: the accuracy right after the cut
takes a twentieth of the time of 2 epochs and ranks what these lead to with Spearman's 0.74, where the accuracy after
the first of them gives 0.51.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from runners.trial import TrainingSegment, Trial, TrialResult
from search.problem import Problem
from search.results.pareto import measured, objectives
from search.results.rank_correlation import (
    SCREENED,
    SCREENED_ACCURACY,
    UNSCREENED,
    audit_screening,
    misleads,
    switched_off,
)

_log = logging.getLogger(__name__)
Note = dict[str, float | int | bool]


@dataclass
class _Pool:
    """Candidates under one number, of which one is trained; `results` by key."""

    candidates: tuple[Trial, ...]
    results: dict[str, TrialResult] = field(default_factory=dict)

    def accuracy(self, candidate: Trial) -> float:
        """Return the accuracy in [0, 1] before training, or -1 for a failed candidate."""
        result = self.results[candidate.key()]
        return objectives(result)[1] if measured(result) else -1.0


class Screening:
    """Compares candidates before any training.

    A new candidate and similar ones become a pool: trials of no epochs, all under one number, one to each worker that
    asks. Once all candidates of a pool have a result, the most accurate one is trained under that number.

    Args:
        problem: its rungs say which trials were trained to the end.
        size: number of candidates of which one is trained; 1 trains them all.
        results: found by an earlier process.
    """

    def __init__(self, problem: Problem, size: int, results: Sequence[TrialResult] = ()) -> None:
        self._rungs, self._size = problem.rungs, size
        self._off = switched_off(results)
        self._pools: dict[int, _Pool] = {}
        self._waiting: list[Trial] = []  # candidates of pools that no worker has had yet
        self._winners: list[Trial] = []
        self._screened: dict[int, tuple[Note, Collection[TrialResult]]] = {}  # by number, of trials without a result
        self.observe(results)  # a search that was stopped decides as it would have

    @property
    def others_wanted(self) -> int:
        """Number of candidates that a new one is compared with; 0 once the accuracy before training has misled."""
        return 0 if self._off else self._size - 1

    @property
    def active(self) -> bool:
        """Whether pools are being compared, or a winner waits to be trained."""
        return bool(self._pools or self._winners)

    def observe(self, results: Sequence[TrialResult]) -> None:
        """Switch screening off for good once the accuracy before training does not rank networks as its end does."""
        if self._off or self._size == 1:
            return
        audit = audit_screening(results, self._rungs)
        if audit is not None and misleads(audit):
            self._off = True
            _log.warning(
                "the accuracy before training does not rank networks as the end of training does (rank correlation "
                "%.2f over %d trials): from now on every candidate is trained",
                audit.correlation,
                audit.trials,
            )

    def next_winner(self) -> Trial | None:
        """Return the best candidate of a pool that was compared, to be trained; None when there is none."""
        return self._winners.pop(0) if self._winners else None

    def next_candidate(self) -> Trial | None:
        """Return a candidate to be compared; None when there is none."""
        return replace(self._waiting.pop(0), segment=TrainingSegment(0)) if self._waiting else None

    def open(self, trial: Trial, others: Sequence[Trial]) -> None:
        """Compare a trial with other candidates."""
        self._pools[trial.number] = _Pool((trial, *others))
        self._waiting += [trial, *others]

    def skip(self, trial: Trial) -> None:
        """Note that a trial would have been compared with others, had screening not been switched off."""
        if self._off and self._size > 1:
            self._screened[trial.number] = ({UNSCREENED: True}, ())

    def compares(self, number: int) -> bool:
        """Return whether candidates with this number are being compared."""
        return number in self._pools

    def tell(self, result: TrialResult) -> Trial | None:
        """Take the result of a candidate; return the winner when it was the last one of its pool.

        The winner is the most accurate candidate; of equals, and where all have failed, the first.
        """
        number = result.trial.number
        pool = self._pools[number]
        pool.results[result.trial.key()] = result
        if len(pool.results) < len(pool.candidates):
            return None
        del self._pools[number]
        winner = max(pool.candidates, key=pool.accuracy)
        note: Note = {SCREENED: len(pool.candidates)}
        if (accuracy := pool.accuracy(winner)) >= 0:
            note[SCREENED_ACCURACY] = accuracy
        self._screened[number] = note, pool.results.values()
        self._winners.append(winner)
        return winner

    def annotate(self, result: TrialResult) -> TrialResult:
        """Return the result of a trial with the note of its screening, and with the time of its whole pool added."""
        note, pool = self._screened.pop(result.trial.number, ({}, ()))
        return replace(
            result,
            note={**result.note, **note},
            seconds=result.seconds + sum(candidate.seconds for candidate in pool),
            train_seconds=result.train_seconds + sum(candidate.train_seconds for candidate in pool),
        )
