"""Screening, the rung before any training: candidates are cut and compared, and the best of them is trained.

What a cut network tells before any training, its proxy (`runners.evaluation.proxy`), costs a fraction of an epoch.
Where a trained network contains the widths of a candidate, the candidate is cut from that network too, and the start
with the better proxy counts.
"""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from runners.trial import TrainingSegment, Trial, TrialResult
from search.problem import Problem
from search.results.rank_correlation import (
    PROXY,
    SCREENED,
    UNSCREENED,
    audit_screening,
    misleads,
    switched_off,
)
from search.schedulers.parents import contains

# Candidates of a part of a pool, at least: a part has a copy of the dense network and the images to itself.
LEAST_PART = 4
_log = logging.getLogger(__name__)
Note = dict[str, float | int | bool]


@dataclass(frozen=True)
class Start:
    """A trained network that candidates of a pool may be cut from, with its weights."""

    parent: TrialResult
    weights: bytes | None = field(repr=False)


@dataclass
class _Pool:
    """Candidates under one number, of which one is trained.

    Attributes:
        candidates: as cut from the dense network, then those that are cut from a trained one too.
        size: number of different candidates.
        waiting: parts that no worker has had yet.
        weights: of the trained network.
        results: of parts.
        proxies: of candidates that were cut, by key.
    """

    candidates: tuple[Trial, ...]
    size: int
    waiting: list[tuple[Trial, ...]]
    weights: bytes | None
    results: list[TrialResult] = field(default_factory=list)
    proxies: dict[str, float] = field(default_factory=dict)

    def add(self, result: TrialResult) -> None:
        """Take the result of a part."""
        self.results.append(result)
        for candidate, screened in zip(result.trial.pool, result.screened, strict=False):  # a failed part has none
            if screened.proxy is not None:
                self.proxies[candidate.key()] = screened.proxy

    @property
    def is_compared(self) -> bool:
        """Whether every candidate has been compared."""
        return sum(len(result.trial.pool) for result in self.results) == len(self.candidates)

    @property
    def winner(self) -> Trial:
        """The candidate of the highest proxy; of equals, and where all have failed, the first."""
        best = max(self.candidates, key=lambda candidate: self.proxies.get(candidate.key(), -math.inf))
        return self.started(best)

    def started(self, trial: Trial) -> Trial:
        """Return a candidate with the weights of the network that it is cut from."""
        return trial.started_from(self.weights) if trial.parent else trial


class Screening:
    """Compares candidates before any training.

    A new candidate and similar ones become a pool, all under one number. It is handed out in parts, each of them one
    call of a worker; once all have a result, the candidate with the highest proxy is trained under that number.

    Args:
        problem: its rungs say which trials were trained to the end.
        size: number of candidates of which one is trained; 1 trains them all.
        results: found by an earlier process.
        workers: among which a pool is divided.
    """

    def __init__(self, problem: Problem, size: int, results: Sequence[TrialResult] = (), workers: int = 1) -> None:
        self._rungs, self._epochs = problem.rungs, problem.config.train.epochs
        self._size, self._workers = size, workers
        self._off = switched_off(results)
        self._pools: dict[int, _Pool] = {}
        self._winners: list[Trial] = []
        # By number, of trials without a result: the note of their screening and the results of their pool.
        self._screened: dict[int, tuple[Note, Sequence[TrialResult]]] = {}
        self.observe(results)  # a search that was stopped decides as it would have

    @property
    def others_wanted(self) -> int:
        """Number of candidates that a new one is compared with; 0 once the proxy has misled."""
        return 0 if self._off else self._size - 1

    @property
    def active(self) -> bool:
        """Whether pools are being compared, or a winner waits to be trained."""
        return bool(self._pools or self._winners)

    def observe(self, results: Sequence[TrialResult]) -> None:
        """Switch screening off for good once the proxy does not rank networks as the end of training does."""
        if self._off or self._size == 1:
            return
        audit = audit_screening(results, self._rungs)
        if audit is not None and misleads(audit):
            self._off = True
            _log.warning(
                "the proxy before training does not rank networks as the end of training does (rank correlation "
                "%.2f over %d trials): from now on every candidate is trained",
                audit.correlation,
                audit.trials,
            )

    def next_winner(self) -> Trial | None:
        """Return the best candidate of a pool that was compared, to be trained; None when there is none."""
        return self._winners.pop(0) if self._winners else None

    def next_part(self) -> Trial | None:
        """Return a trial whose pool is to be compared, a part of a screening pool; None when there is none."""
        for pool in self._pools.values():
            if pool.waiting:
                part = pool.waiting.pop(0)
                return replace(pool.started(part[0]), pool=part)
        return None

    def open(self, trial: Trial, others: Sequence[Trial], start: Start | None = None) -> None:
        """Compare a trial with other candidates.

        Args:
            start: a trained network, from which those that it contains are cut too.
        """
        candidates = (trial, *others)
        heirs = () if start is None else tuple(self._heirs(candidates, start.parent))
        parts = [*self._parts(candidates), *self._parts(heirs)]
        weights = None if start is None else start.weights
        self._pools[trial.number] = _Pool((*candidates, *heirs), len(candidates), parts, weights)

    def _heirs(self, candidates: Sequence[Trial], parent: TrialResult) -> Iterator[Trial]:
        """Yield the candidates that a trained network contains, as cut from that."""
        for candidate in candidates:
            widths = candidate.goal.widths
            if widths is not None and contains(parent, widths):
                segment = candidate.segment or TrainingSegment(int(candidate.training.get("epochs", self._epochs)))
                yield replace(candidate, parent=parent.label, segment=segment)

    def _parts(self, candidates: tuple[Trial, ...]) -> list[tuple[Trial, ...]]:
        """Divide candidates that are cut from one network among the workers."""
        count = max(1, min(self._workers, len(candidates) // LEAST_PART))
        ends = [len(candidates) * part // count for part in range(count + 1)]
        return [candidates[first:end] for first, end in itertools.pairwise(ends) if first < end]

    def skip(self, trial: Trial) -> None:
        """Note that a trial would have been compared with others, had screening not been switched off."""
        if self._off and self._size > 1:
            self._screened[trial.number] = ({UNSCREENED: True}, ())

    def compares(self, number: int) -> bool:
        """Return whether candidates with this number are being compared."""
        return number in self._pools

    def tell(self, result: TrialResult) -> Trial | None:
        """Take the result of a part of a pool; return the winner when it was the last part."""
        number = result.trial.number
        pool = self._pools[number]
        pool.add(result)
        if not pool.is_compared:
            return None
        del self._pools[number]
        winner = pool.winner
        note: Note = {SCREENED: pool.size}
        if winner.key() in pool.proxies:
            note[PROXY] = pool.proxies[winner.key()]
        self._screened[number] = note, pool.results
        self._winners.append(winner)
        return winner

    def annotate(self, result: TrialResult) -> TrialResult:
        """Return the result of a trial with the note of its screening, and with the time of its whole pool added."""
        note, pool = self._screened.pop(result.trial.number, ({}, ()))
        return replace(
            result,
            note={**result.note, **note},
            seconds=result.seconds + sum(part.seconds for part in pool),
            train_seconds=result.train_seconds + sum(part.train_seconds for part in pool),
        )
