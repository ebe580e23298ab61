"""The Pareto front of a search: the networks that no other network dominates in validation accuracy and cost.

Cost is FLOPs, or measured latency (`--objective`). Latency is limited and compared by good readings only: a network
without a good reading is on no front along latency.
"""

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from runners.trial import TrialResult, TrialState
from spaces.budget import Budget

FLOPS, LATENCY = "flops", "latency"  # axes
_Member = TypeVar("_Member")


def measured(result: TrialResult, axis: str = FLOPS) -> bool:
    """Return whether a trial has a network with a finite accuracy and a cost, along latency a good reading too."""
    known = result.cost is not None and result.accuracy is not None and math.isfinite(result.accuracy)
    return known and result.state is not TrialState.FAILED and (axis == FLOPS or result.timed is not None)


def counted(budgets: Iterable[Budget]) -> tuple[Budget, ...]:
    """Return the budgets that need no measurement: all but those on latency."""
    return tuple(budget for budget in budgets if budget.quantity != "latency")


def affordable(results: Iterable[TrialResult], budgets: Sequence[Budget]) -> tuple[TrialResult, ...]:
    """Return every measured network of these trials that is inside all counted budgets (absolute).

    Intermediate networks may exceed them: they are recorded, but are on no front.
    """
    networks = (network for result in results for network in result.networks)
    return tuple(network for network in networks if measured(network) and _fits(network, budgets))


def may_enter(network: TrialResult, budgets: Sequence[Budget]) -> bool:
    """Return whether a network may enter a front: it is affordable, and no reading puts it over a latency budget."""
    limits = [budget.limit for budget in budgets if budget.quantity == "latency"]
    slow = network.timed is not None and any(network.timed["high"] > limit for limit in limits)
    return measured(network) and _fits(network, budgets) and not slow


def _fits(network: TrialResult, budgets: Iterable[Budget]) -> bool:
    """Return whether a network is inside the counted budgets."""
    return network.cost is not None and all(budget.allows(network.cost) for budget in counted(budgets))


def inside(results: Iterable[TrialResult], budgets: Sequence[Budget], axis: str = FLOPS) -> tuple[TrialResult, ...]:
    """Return every network of these trials that may be on a front: affordable, and measured inside latency budgets.

    The upper end of the measured interval must be inside the limit. Along a latency axis a reading is needed, too.
    """
    limits = [budget.limit for budget in budgets if budget.quantity == "latency"]
    found = affordable(results, budgets)
    if limits:
        found = tuple(n for n in found if n.timed is not None and all(n.timed["high"] <= limit for limit in limits))
    return tuple(network for network in found if measured(network, axis))


def is_unclear(network: TrialResult, budgets: Sequence[Budget]) -> bool:
    """Return whether the interval of a measured latency holds the limit of a budget; such a network is on no front."""
    limits = [budget.limit for budget in budgets if budget.quantity == "latency"]
    timed = network.timed
    return timed is not None and any(timed["low"] <= limit < timed["high"] for limit in limits)


def objectives(result: TrialResult, axis: str = FLOPS) -> tuple[float, float]:
    """Return (cost, validation accuracy) of a measured network; the cost is FLOPs, a whole number, or seconds.

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
    """Return the order of networks with equal objectives: trial number, then the trial's own network first."""
    return result.trial.number, result.intermediate_index


def dominates(left: TrialResult, right: TrialResult, axis: str = FLOPS) -> bool:
    """Return whether `left` is at least as accurate and as cheap as `right`, and better in one of the two."""
    (left_cost, left_accuracy), (right_cost, right_accuracy) = objectives(left, axis), objectives(right, axis)
    no_worse = left_cost <= right_cost and left_accuracy >= right_accuracy
    return no_worse and (left_cost, left_accuracy) != (right_cost, right_accuracy)


def most_accurate(results: Iterable[TrialResult]) -> TrialResult | None:
    """Return the most accurate network; of equals the one with fewer FLOPs, then the earlier; None without networks.

    Of a network with final training, the accuracy over its last epochs counts, not one reading.
    """
    return min(results, key=lambda r: (-(r.settled_accuracy or 0.0), objectives(r)[0], *rank(r)), default=None)


def non_dominated(
    members: Iterable[_Member], objectives: Callable[[_Member], tuple[float, float]], *, keep_equal: bool = False
) -> list[_Member]:
    """Return the members that no other member dominates, cheapest first.

    Args:
        objectives: cost, the lower the better, and accuracy of a member, the higher the better.
        keep_equal: whether all members with the same two objectives stay; otherwise the first of them does.
    """
    kept: list[_Member] = []
    last = (-math.inf, -math.inf)
    for member in sorted(members, key=lambda member: (objectives(member)[0], -objectives(member)[1])):
        cost, accuracy = objectives(member)
        # Cheapest first and, at equal cost, most accurate first: a member stays if it is more accurate than all before.
        if accuracy > last[1] or (keep_equal and (cost, accuracy) == last):
            kept.append(member)
            last = (cost, accuracy)
    return kept


def non_dominated_ranks(
    members: Iterable[_Member], objectives: Callable[[_Member], tuple[float, float]]
) -> list[list[_Member]]:
    """Return the members by rank: the front, then the front of those that are left, and so on, each cheapest first.

    Members with the same two objectives share a rank. One pass with a search among the ranks (Jensen, 2003) takes
    n log n steps, where taking one front after the other takes n squared.

    Args:
        objectives: cost, the lower the better, and accuracy of a member, the higher the better.
    """
    ranks: list[list[_Member]] = []
    lasts: list[tuple[float, float]] = []  # objectives of the last member of every rank
    falling: list[float] = []  # the same accuracies, negated
    known = [(*objectives(member), member) for member in members]
    for cost, accuracy, member in sorted(known, key=lambda one: (one[0], -one[1])):
        # The last member of a rank is its most accurate, and no dearer than this one, which is in the first rank where
        # it is more accurate than that, or equal in both.
        index = bisect.bisect_right(falling, -accuracy)
        if index and lasts[index - 1] == (cost, accuracy):
            index -= 1
        if index == len(ranks):
            ranks.append([])
            lasts.append((cost, accuracy))
            falling.append(-accuracy)
        ranks[index].append(member)
        lasts[index], falling[index] = (cost, accuracy), -accuracy
    return ranks


@dataclass(frozen=True)
class ParetoFront:
    """The non-dominated results in (accuracy up, cost along `axis` down), cheapest first.

    Every given result stands for its own network alone; its `intermediate_networks` are results to be given, too.
    Results that failed or have no finite accuracy are left out, and so are dominated ones. Of several results with the
    same accuracy and cost the one with the lowest trial number stays, a trial's own network before its intermediate
    ones.
    """

    members: tuple[TrialResult, ...] = ()
    axis: str = FLOPS

    def __post_init__(self) -> None:
        """Keep the non-dominated results only."""
        candidates = sorted((result for result in self.members if measured(result, self.axis)), key=rank)
        members = non_dominated(candidates, lambda result: objectives(result, self.axis))
        object.__setattr__(self, "members", tuple(members))

    def with_results(self, results: Iterable[TrialResult]) -> "ParetoFront":
        """Return the front of its members and these results."""
        return ParetoFront((*self.members, *results), self.axis)

    def best(self, budgets: Sequence[Budget] = ()) -> TrialResult | None:
        """Return the most accurate member inside all counted budgets (absolute), or None."""
        return next((member for member in reversed(self.members) if _fits(member, budgets)), None)

    def hypervolume(self, reference: float) -> float:
        """Return the dominated area as a share of the whole, in [0, 1].

        With the members cheapest first, x = cost / reference, x[n] = 1 and y = accuracy, it is
        `sum((x[i + 1] - x[i]) * y[i])`: the mean over all limits of cost up to the reference of the best accuracy that
        fits. Members at or beyond the reference add nothing. It never falls when a result is added.

        Args:
            reference: cost of the dense network, along the axis of the front.
        """
        area, reach = 0.0, 1.0
        for result in reversed(self.members):
            cost, accuracy = objectives(result, self.axis)
            share = min(reach, cost / reference)
            area += (reach - share) * accuracy
            reach = share
        return area

    def __len__(self) -> int:
        """Count the members."""
        return len(self.members)

    def __iter__(self) -> Iterator[TrialResult]:
        """Iterate over the members, cheapest first."""
        return iter(self.members)
