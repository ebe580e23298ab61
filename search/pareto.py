"""The Pareto front of a search: networks that no other one beats in both accuracy and FLOPs."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from runners.trial import TrialResult, TrialState
from spaces.budget import Budget


def measured(result: TrialResult) -> bool:
    """Whether a trial has given a network with a finite accuracy and a cost."""
    known = result.cost is not None and result.accuracy is not None and math.isfinite(result.accuracy)
    return known and result.state is not TrialState.FAILED


def inside(results: Iterable[TrialResult], budgets: Sequence[Budget]) -> tuple[TrialResult, ...]:
    """Return every measured network of these trials that is inside all budgets on flops and params (absolute).

    Networks that a trial passed on its way may be above them: those are known, but no front may have them.
    """
    counted = [budget for budget in budgets if budget.quantity != "latency"]  # which no Cost can answer
    networks = [network for result in results for network in result.points if measured(network)]
    return tuple(n for n in networks if n.cost is not None and all(budget.allows(n.cost) for budget in counted))


def point(result: TrialResult) -> tuple[int, float]:
    """Return (FLOPs, validation accuracy) of a measured trial.

    Raises:
        ValueError: the trial has no cost or no accuracy; ask `measured` first.
    """
    if result.cost is None or result.accuracy is None:
        raise ValueError(f"trial {result.label} is {result.state} and has no cost and accuracy to compare")
    return result.cost.flops, result.accuracy


def rank(result: TrialResult) -> tuple[int, int]:
    """Return what tells networks of equal figures apart: the lower one stays."""
    return result.trial.number, result.waypoint


def dominates(left: TrialResult, right: TrialResult) -> bool:
    """Whether `left` is at least as accurate and as cheap as `right`, and better in one of the two."""
    (left_flops, left_accuracy), (right_flops, right_accuracy) = point(left), point(right)
    no_worse = left_flops <= right_flops and left_accuracy >= right_accuracy
    return no_worse and (left_flops, left_accuracy) != (right_flops, right_accuracy)


@dataclass(frozen=True)
class ParetoFront:
    """The non-dominated results in (accuracy up, FLOPs down), cheapest first.

    Built from any results, each of which stands for itself alone, not for what it `passed`: those that failed or have
    no finite accuracy are left out, so are the dominated ones, and of several with the same accuracy and FLOPs the
    one with the lowest trial number stays, a trial's own before those it passed.
    """

    members: tuple[TrialResult, ...] = ()

    def __post_init__(self) -> None:
        """Keep the non-dominated results only."""
        candidates = [result for result in self.members if measured(result)]
        # Cheapest first and, at equal cost, most accurate first: a member is then whatever beats all before it.
        candidates.sort(key=lambda result: (point(result)[0], -point(result)[1], *rank(result)))
        kept: list[TrialResult] = []
        for result in candidates:
            if not kept or point(result)[1] > point(kept[-1])[1]:
                kept.append(result)
        object.__setattr__(self, "members", tuple(kept))

    def with_results(self, results: Iterable[TrialResult]) -> "ParetoFront":
        """Return the front once more results are known."""
        return ParetoFront((*self.members, *results))

    def best(self, budgets: Sequence[Budget] = ()) -> TrialResult | None:
        """Return the most accurate member inside all budgets (absolute, on flops or params), or None."""
        fitting = [r for r in self.members if r.cost is not None and all(budget.allows(r.cost) for budget in budgets)]
        return fitting[-1] if fitting else None

    def hypervolume(self, reference_flops: int, reference_accuracy: float = 0.0) -> float:
        """Return the dominated area as a share of the whole, in [0, 1].

        With the members cheapest first, x = flops / reference_flops, x[n] = 1 and
        y = (accuracy - reference_accuracy) / (1 - reference_accuracy), it is `sum((x[i + 1] - x[i]) * y[i])`: the
        mean over all FLOPs limits up to the reference of the best accuracy that fits. Members at or beyond the
        reference add nothing. It never falls when a result is added.

        Args:
            reference_flops: of the dense network.
            reference_accuracy: in [0, 1), e.g. that of guessing.
        """
        area, reach = 0.0, 1.0
        for result in reversed(self.members):
            flops, accuracy = point(result)
            share = flops / reference_flops
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
