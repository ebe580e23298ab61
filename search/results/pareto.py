"""The Pareto front of a search: networks that no other one beats in both accuracy and cost.

Cost is FLOPs, or the latency that was measured (`--objective`). Whoever limits or compares latency takes good readings
only: a network without one is on no front.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from runners.trial import TrialResult, TrialState
from spaces.budget import Budget

FLOPS, LATENCY = "flops", "latency"  # axes


def measured(result: TrialResult) -> bool:
    """Whether a trial has given a network with a finite accuracy and a cost."""
    known = result.cost is not None and result.accuracy is not None and math.isfinite(result.accuracy)
    return known and result.state is not TrialState.FAILED


def counted(budgets: Iterable[Budget]) -> tuple[Budget, ...]:
    """Return the budgets on flops and params, which need no measurement."""
    return tuple(budget for budget in budgets if budget.quantity != "latency")


def affordable(results: Iterable[TrialResult], budgets: Sequence[Budget]) -> tuple[TrialResult, ...]:
    """Return every measured network of these trials that is inside all budgets on flops and params (absolute).

    Networks that a trial passed on its way may be above them: those are known, but no front may have them.
    """
    limits = counted(budgets)
    networks = [network for result in results for network in result.networks if measured(network)]
    return tuple(n for n in networks if n.cost is not None and all(budget.allows(n.cost) for budget in limits))


def may_enter(network: TrialResult, budgets: Sequence[Budget]) -> bool:
    """Whether a front may yet have this network: it is affordable, and no reading found it over a latency budget."""
    limits = [budget.limit for budget in budgets if budget.quantity == "latency"]
    slow = network.timed is not None and any(network.timed["high"] > limit for limit in limits)
    return not slow and bool(affordable([dataclasses.replace(network, intermediate_networks=())], budgets))


def inside(results: Iterable[TrialResult], budgets: Sequence[Budget], axis: str = FLOPS) -> tuple[TrialResult, ...]:
    """Return every network of these trials that a front may have: affordable, and measured inside latency budgets.

    The upper end of the measured interval must hold the limit. Along a latency axis there must be a reading, too.
    """
    limits = [budget.limit for budget in budgets if budget.quantity == "latency"]
    found = affordable(results, budgets)
    if limits:
        found = tuple(n for n in found if n.timed is not None and all(n.timed["high"] <= limit for limit in limits))
    return tuple(n for n in found if n.timed is not None) if axis == LATENCY else found


def objectives(result: TrialResult, axis: str = FLOPS) -> tuple[float, float]:
    """Return (cost, validation accuracy) of a measured trial: FLOPs, a whole number, or seconds.

    Raises:
        ValueError: the trial has no such cost or no accuracy; ask `measured`, or `inside` for latency, first.
    """
    seconds = None if result.timed is None else float(result.timed["seconds"])
    cost = seconds if axis == LATENCY else None if result.cost is None else result.cost.flops
    if cost is None or result.accuracy is None:
        what = "latency" if axis == LATENCY else "cost"
        raise ValueError(f"trial {result.label} is {result.state} and has no {what} and accuracy to compare")
    return cost, result.accuracy


def rank(result: TrialResult) -> tuple[int, int]:
    """Return what tells networks of equal figures apart: the lower one stays."""
    return result.trial.number, result.intermediate_index


def dominates(left: TrialResult, right: TrialResult, axis: str = FLOPS) -> bool:
    """Whether `left` is at least as accurate and as cheap as `right`, and better in one of the two."""
    (left_cost, left_accuracy), (right_cost, right_accuracy) = objectives(left, axis), objectives(right, axis)
    no_worse = left_cost <= right_cost and left_accuracy >= right_accuracy
    return no_worse and (left_cost, left_accuracy) != (right_cost, right_accuracy)


def most_accurate(results: Iterable[TrialResult]) -> TrialResult | None:
    """Return the most accurate network; of equals the one with fewer FLOPs, then the earlier. None of none."""
    return min(results, key=lambda r: (-objectives(r)[1], objectives(r)[0], *rank(r)), default=None)


@dataclass(frozen=True)
class ParetoFront:
    """The non-dominated results in (accuracy up, cost along `axis` down), cheapest first.

    Built from any results, each of which stands for itself alone, not for what it `intermediate_networks`: those that
    failed or have no finite accuracy are left out, so are the dominated ones, and of several with the same accuracy and
    cost the one with the lowest trial number stays, a trial's own before those it passed.
    """

    members: tuple[TrialResult, ...] = ()
    axis: str = FLOPS

    def __post_init__(self) -> None:
        """Keep the non-dominated results only."""
        candidates = [r for r in self.members if measured(r) and (self.axis == FLOPS or r.timed is not None)]
        # Cheapest first and, at equal cost, most accurate first: a member is then whatever beats all before it.
        candidates.sort(key=lambda result: (*self._order(result), *rank(result)))
        kept: list[TrialResult] = []
        for result in candidates:
            if not kept or self._order(result)[1] < self._order(kept[-1])[1]:
                kept.append(result)
        object.__setattr__(self, "members", tuple(kept))

    def _order(self, result: TrialResult) -> tuple[float, float]:
        cost, accuracy = objectives(result, self.axis)
        return cost, -accuracy

    def with_results(self, results: Iterable[TrialResult]) -> "ParetoFront":
        """Return the front once more results are known."""
        return ParetoFront((*self.members, *results), self.axis)

    def best(self, budgets: Sequence[Budget] = ()) -> TrialResult | None:
        """Return the most accurate member inside all budgets on flops and params (absolute), or None."""
        limits = counted(budgets)
        fitting = [r for r in self.members if r.cost is not None and all(budget.allows(r.cost) for budget in limits)]
        return fitting[-1] if fitting else None

    def hypervolume(self, reference: float, reference_accuracy: float = 0.0) -> float:
        """Return the dominated area as a share of the whole, in [0, 1].

        With the members cheapest first, x = cost / reference, x[n] = 1 and
        y = (accuracy - reference_accuracy) / (1 - reference_accuracy), it is `sum((x[i + 1] - x[i]) * y[i])`: the
        mean over all limits of cost up to the reference of the best accuracy that fits. Members at or beyond the
        reference add nothing. It never falls when a result is added.

        Args:
            reference: cost of the dense network, along the axis of the front.
            reference_accuracy: in [0, 1), e.g. that of guessing.
        """
        area, reach = 0.0, 1.0
        for result in reversed(self.members):
            cost, accuracy = objectives(result, self.axis)
            share = cost / reference
            if share >= reach:
                continue
            area += (reach - share) * max(0.0, accuracy - reference_accuracy) / (1 - reference_accuracy)
            reach = share
        return area

    def __len__(self) -> int:
        """Count the members."""
        return len(self.members)

    def __iter__(self) -> Iterator[TrialResult]:
        """Iterate over the members, cheapest first."""
        return iter(self.members)
