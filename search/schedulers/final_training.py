"""FinalTraining: after the search, the best networks are trained on, and each passes its training on to the next.

It goes from the largest target down. At every target a few entrants are compared at a rung, and the best of them gets
the rest of the target's epochs. The best baseline and the best searched network go on from their own weights. Under the
first target, networks that are cut from the winner of the target above enter too: one at widths that `di` finds on it,
and one at the widths of the best searched network where the winner contains them. So the network of the smallest target
has had the training of all larger ones.

The largest and the smallest target get more of the epochs.

Without targets, the limits are the costs of members of the front that lie evenly in log cost. Every decision is a
function of the results so far, so a search that was stopped decides as it would have.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from configs.schema import LEVELS
from pruning.base import METHODS, Goal
from pruning.traits import screenable
from runners.trial import Trial, TrialResult
from search.results.comparison import is_ahead
from search.results.pareto import inside, may_enter, measured, non_dominated
from search.schedulers.asha import Promotion
from search.schedulers.parents import contains
from search.schedulers.segments import NOT_CONTINUED
from search.searchers.candidate_space import CandidateSpace
from search.time_left import NO_COST, FinalCost
from spaces.budget import Budget

# The rung of the entrants is one in so many of a target's epochs; heirs get as many as trials have had, but no more
# than one in LONGEST_RUNG.
RUNG_SHARE, LONGEST_RUNG = 8, 3
# With fewer epochs at a target the rungs of so many entrants would leave too little to the best of them.
EPOCHS_FOR_TWO, EPOCHS_FOR_THREE = 4, 6
# Epochs of the largest and of the smallest target, relative to the mean. Nothing finished is above the largest, and all
# smaller ones inherit its training; the cut of the smallest takes longest to mend. With 10, 8, 8 and 10 epochs in place
# of 7, 8, 10 and 11 four studied cells gained 0.4 points at 50% of the FLOPs, and 0.1 on the mean.
ENDS_SHARE = 1.1
APART = 0.8  # members of the front whose costs differ less are one place to train on
INHERITING_METHOD = "di"  # finds widths on a finished network
LEARNED = 0.9  # accuracy on training images from which a dense network has learned them


@dataclass(frozen=True)
class DenseAccuracy:
    """Accuracies of the dense network, in [0, 1], on validation and on training images without augmentation."""

    val: float
    train: float


@dataclass(frozen=True)
class Heir:
    """A new trial that is cut from a finished network.

    Attributes:
        trial: without number, seed and segment.
        parent: the result that has the finished network.
        epochs: of its first training segment.
        completes: whether its final training ends with them.
    """

    trial: Trial
    parent: TrialResult
    epochs: int = 0
    completes: bool = False


@dataclass(frozen=True)
class _Level:
    """The networks that compete at one target.

    Attributes:
        results: of entrants that have one, in the order in which they are trained.
        heirs: entrants that have no result yet.
        epochs: of final training at this target, of all entrants together.
        rung: epochs of training after which the entrants are compared; 0 for a single one.
    """

    results: Sequence[TrialResult]
    heirs: Sequence[Heir]
    epochs: int
    rung: int

    @property
    def alive(self) -> list[TrialResult]:
        """The entrants with a result that did not fail."""
        return [result for result in self.results if measured(result) and NOT_CONTINUED not in result.note]

    def next_rung(self, running: Collection[str]) -> Promotion | Heir | None:
        """Return an entrant that is to be trained to the rung; None when all were, or run.

        What a trial was trained in the search counts, so that often only heirs are trained.
        """
        for heir in self.heirs:
            if heir.trial.key() not in running:
                return Heir(heir.trial, heir.parent, self.rung or self.epochs, completes=not self.rung)
        for result in self.alive:
            if (result.trained or 0) < self.rung and result.trial.key() not in running:
                return _until(result, result.final_epochs + self.rung - (result.trained or 0))
        return None

    def is_compared(self) -> bool:
        """Return whether every entrant that did not fail has been trained to the rung."""
        return not self.heirs and all((result.trained or 0) >= self.rung for result in self.alive)

    def last_segment(self, leader: TrialResult) -> Promotion | None:
        """Return the rest of the training of the best entrant; None once it was trained to the end, or cannot be."""
        whole = self.epochs - sum(entrant.final_epochs for entrant in self.alive if entrant is not leader)
        ends = leader.final_epochs >= whole or NOT_CONTINUED in leader.note
        return None if ends else replace(_until(leader, whole), completes=True)


class FinalTraining:
    """Decides which network is trained on after the search, and for how long.

    Args:
        epochs: of final training at each target, on average; 0 for none.
        dense: decides whether the dense network is the teacher of distillation.
        val_images: number of validation images, from which the noise of an accuracy follows; 0 takes no noise.
        cost: of the final training of a network, by which what is left of it is weighed.
    """

    def __init__(
        self,
        candidates: CandidateSpace,
        epochs: int,
        dense: DenseAccuracy = DenseAccuracy(1.0, 1.0),
        val_images: int = 0,
        cost: FinalCost = NO_COST,
    ) -> None:
        self.epochs, self._dense, self._val_images, self._cost = epochs, dense, val_images, cost
        self._candidates, self._problem = candidates, candidates.problem
        self._quantity = candidates.cost_coverage.quantity

    def next_step(self, results: Sequence[TrialResult], running: Collection[str]) -> Promotion | Heir | None:
        """Return what is trained next; None when nothing is left, or nothing before a running trial has ended.

        Args:
            running: keys of the trials that workers have.
        """
        if not self.epochs:
            return None
        limits = self.limits(results)
        above, is_known = self._finished_above(results, limits), True  # the winner of the target above
        bounds = itertools.pairwise([*limits, 0.0])
        for (limit, below), epochs in zip(bounds, split_epochs(self.epochs, len(limits)), strict=True):
            level = self._level((below, limit), epochs, results, above, is_known=is_known)
            if (step := level.next_rung(running)) is not None:
                return step
            leader = self._leader(level) if is_known and level.is_compared() else None
            is_known = is_known and level.is_compared()
            if leader is None:
                continue
            if (segment := level.last_segment(leader)) is not None:
                if leader.trial.key() not in running:
                    return segment
                is_known = False
            above = leader
        return None

    def epochs_left(self, results: Sequence[TrialResult]) -> float:
        """Return how many epochs of the dense network would take as long as the rest of the final training."""
        dense = float(getattr(self._problem.space.dense_cost, self._quantity))
        limits, left = self.limits(results) if self.epochs else [], 0.0
        bounds = itertools.pairwise([*limits, 0.0])
        for (limit, below), epochs in zip(bounds, split_epochs(self.epochs, len(limits)), strict=True):
            here = [result for result in results if measured(result) and below < self.cost(result) <= limit]
            done = sum(result.final_epochs for result in here)
            heir = self._problem.config.inherit and limit < limits[0] and not done
            teacher = limits[0] / dense if limit < limits[0] else 1.0
            left += self._cost.dense_epochs(max(0, epochs - done), limit / dense, teacher, heir=heir)
        return left

    def teacher(
        self, results: Sequence[TrialResult], number: int | None = None
    ) -> tuple[float, TrialResult | None] | None:
        """Return the weight of distillation and the teacher, which is the dense network where it is None.

        That is the most accurate network at hand: the dense one, or one that was trained to the end. None leaves the
        distillation of the trials as it is.

        Args:
            number: of the trial that is trained on, which does not teach itself; None for a new one.
        """
        weights = self._problem.config.final_distillation
        if weights is None:
            return None
        finished = [result for result in self._trained_to_the_end(results) if result.trial.number != number]
        if not finished:
            return (weights.first if self._dense.train >= LEARNED else weights.untaught), None
        best = max(finished, key=lambda result: (result.settled_accuracy or 0.0, -result.trial.number))
        return weights.later, best if (best.settled_accuracy or 0.0) > self._dense.val else None

    def limits(self, results: Sequence[TrialResult]) -> list[float]:
        """Return the limits on the scaled quantity at which networks are trained on, the largest first."""
        if self._problem.targets:
            return [target.limit for target in self._problem.targets]
        searched = [result for result in self._inside(results) if result.searched_accuracy is not None]
        front = non_dominated(searched, lambda result: (self.cost(result), result.searched_accuracy or 0.0))
        costs = [self.cost(result) for result in front]
        if not costs:
            return []
        low, high = math.log(costs[0]), math.log(costs[-1])
        even = [low + (high - low) * step / (LEVELS - 1) for step in range(LEVELS)]
        nearest = sorted({min(costs, key=lambda cost: abs(math.log(cost) - place)) for place in even}, reverse=True)
        apart = nearest[:1]
        for cost in nearest[1:]:
            if cost <= APART * apart[-1]:
                apart.append(cost)
        return apart

    def cost(self, result: TrialResult) -> float:
        """Return the cost of a network on the quantity that the search scales."""
        return float(getattr(result.cost, self._quantity))

    def _level(
        self,
        bounds: tuple[float, float],
        epochs: int,
        results: Sequence[TrialResult],
        above: TrialResult | None,
        *,
        is_known: bool,
    ) -> _Level:
        """Return the entrants of a target; only its best baseline while the winner of the target above is not known.

        Args:
            bounds: limits of the next target and of this one.
            epochs: of all entrants together.
        """
        below, limit = bounds
        here = [result for result in self._inside(results) if below < self.cost(result) <= limit]
        ranked = sorted((result for result in here if result.searched_accuracy is not None), key=_searched_rank)
        baselines = [result for result in ranked if result.trial.baseline]
        searched = [result for result in ranked if not result.trial.baseline]
        count = 1 + (epochs >= EPOCHS_FOR_TWO) + (epochs >= EPOCHS_FOR_THREE)
        others = (*baselines[:1], *searched[:1])
        trained = max(((result.trained or 0) - result.final_epochs for result in others), default=0)
        rung = max(1, epochs // RUNG_SHARE, min(trained, epochs // LONGEST_RUNG))
        if not is_known:
            return _Level(baselines[:1] if count > 1 else [], [], epochs, rung)
        heirs = [] if above is None else [Heir(trial, above) for trial in self._inheriting(limit, above, searched)]
        continued = [*baselines[:1], *(searched[:1] if len(heirs) < 2 else [])]
        if count == 1:
            continued.sort(key=_searched_rank)
        entered: list[Heir | TrialResult] = [*heirs[:1], *continued, *heirs[1:]]
        known = {result.trial.key(): result for result in results}
        found = [known.get(entrant.trial.key(), entrant) for entrant in entered[:count]]
        new = [entrant for entrant in found if isinstance(entrant, Heir)]
        own = [entrant for entrant in found if isinstance(entrant, TrialResult)]
        return _Level(own, new, epochs, rung if len(found) > 1 else 0)

    def _inheriting(self, limit: float, above: TrialResult, searched: Sequence[TrialResult]) -> Iterator[Trial]:
        """Yield trials cut from a finished network: at widths found on it, and at the best searched widths."""
        if NOT_CONTINUED in above.note or not self._problem.config.inherit:
            return
        goal = self._candidates.goal_within(Budget(self._quantity, limit))
        settings = dict(self._problem.fixed.get(INHERITING_METHOD, {}))
        yield Trial(-1, INHERITING_METHOD, goal, settings, parent=above.label, final=True)
        if not searched or not contains(above, searched[0].widths):
            return
        best = searched[0].trial
        if screenable(METHODS[best.method], best.settings):
            given = Goal(searched[0].widths, goal.budgets)
            yield replace(best, number=-1, goal=given, parent=above.label, final=True)

    def _finished_above(self, results: Sequence[TrialResult], limits: Sequence[float]) -> TrialResult | None:
        """Return the nearest network above all limits that was trained to the end for targets of then; None without."""
        finished = self._trained_to_the_end(results)
        above = [result for result in finished if self.cost(result) > max(limits, default=math.inf)]
        return min(above, key=self.cost, default=None)

    def _trained_to_the_end(self, results: Sequence[TrialResult]) -> list[TrialResult]:
        """Return the networks that have had the rest of a target's epochs, not those that were compared alone."""
        return [result for result in results if measured(result) and 2 * result.final_epochs >= max(1, self.epochs)]

    def _leader(self, level: _Level) -> TrialResult | None:
        """Return the best entrant that the front may have; training on never lowers the accuracy of a result.

        A network that was cut from a finished one gives way only to one that is ahead by more than the noise: it has
        had the training of the finished one, which counts more at the end than after the rung.
        """
        entrants = level.alive or level.results
        able = [result for result in entrants if may_enter(result, self._problem.budgets)]
        best = _most_accurate(able)
        heir = _most_accurate([result for result in able if result.trial.final])
        if best is None or heir is None or not self._val_images:
            return best
        return best if is_ahead(best.accuracy or 0.0, heir.accuracy or 0.0, self._val_images) else heir

    def _inside(self, results: Sequence[TrialResult]) -> list[TrialResult]:
        """Return the networks inside all budgets, without intermediate ones, which are not trained on."""
        found = inside(results, self._problem.budgets, self._problem.axis)
        return [network for network in found if not network.intermediate_index]


def split_epochs(mean: int, targets: int) -> list[int]:
    """Return the epochs of final training at every target, the largest target first; `mean` is their mean."""
    if mean < 2 or targets < 3:
        return [mean] * targets
    between = (targets - 2 * ENDS_SHARE) / (targets - 2)
    shares = [mean * (ENDS_SHARE if index in (0, targets - 1) else between) for index in range(targets)]
    left = mean * targets - sum(int(share) for share in shares)
    by_rest = sorted(range(targets), key=lambda index: (int(shares[index]) - shares[index], -index))
    return [int(share) + (index in by_rest[:left]) for index, share in enumerate(shares)]


def _most_accurate(results: Sequence[TrialResult]) -> TrialResult | None:
    return max(results, key=lambda result: (result.accuracy or 0.0, -result.trial.number), default=None)


def _searched_rank(result: TrialResult) -> tuple[float, int]:
    return -(result.searched_accuracy or 0.0), result.trial.number


def _until(result: TrialResult, final_epochs: int) -> Promotion:
    """Return the promotion after which a network has had so many epochs of final training."""
    return Promotion(result.trial.number, (result.trained or 0) + final_epochs - result.final_epochs)
