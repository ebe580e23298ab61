"""Rungs under two objectives: which trials go on, by non-dominated rank and then by what they add to the front.

Asynchronous successive halving (Li et al., arXiv 1810.05934), with trials in a Pareto order in place of a sorted list:
of those that have come to a rung, the better half goes on. Ranks come from non-dominated sorting in accuracy and
cost, so a cheap narrow net is never behind for being less accurate than a wide one. Within a rank, what a net alone
adds to the dominated area decides; the area is over log cost, in which fronts are to be even, and the cheapest and the
most accurate of a rank come first, as both ends of a front do in NSGA-II.

Every decision is a function of what is known, so a search that was stopped decides as it would have.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

KEPT = 2  # one in so many goes on
NOT_CONTINUED = "not_continued"  # in the note of a trial that a failed leg has ended


@dataclass(frozen=True)
class Climber:
    """A trial that grows through rungs.

    Attributes:
        cost: of its network, in FLOPs or seconds; above 0.
        rungs: (epochs, accuracy) after each of its legs.
        through: it goes to the last rung whatever the others do.
        resting: it can be given another leg: no worker has it, and none of its legs has failed.
    """

    number: int
    cost: float
    rungs: tuple[tuple[int, float], ...]
    through: bool = False
    resting: bool = True

    @property
    def trained(self) -> int:
        """Epochs so far."""
        return self.rungs[-1][0]

    def accuracy_at(self, epochs: int) -> float:
        """Return the accuracy of its best network when it first had so many epochs or more."""
        best = -math.inf
        for reached, accuracy in self.rungs:
            best = max(best, accuracy)
            if reached >= epochs:
                break
        return best


@dataclass(frozen=True)
class Promotion:
    """A trial that goes on, and to how many epochs."""

    number: int
    epochs: int


def promotion(climbers: Sequence[Climber], rungs: Sequence[int], first: int) -> Promotion | None:
    """Return the trial that goes on before a new candidate is begun; None when none has earned it.

    Those that go through come first, then those under the first rung, where nobody is judged, then the better half of
    each rung, from the highest down. Of equals the lower number.

    Args:
        rungs: epochs, rising; the last is the whole training.
        first: index of the lowest rung at which trials are judged.
    """
    resting = sorted((each for each in climbers if each.resting), key=lambda each: each.number)
    for each in resting:
        if each.trained < rungs[-1] and (each.through or each.trained < rungs[first]):
            ahead = rungs if each.through else rungs[first:]
            return Promotion(each.number, next(epochs for epochs in ahead if epochs > each.trained))
    for rung in reversed(range(first, len(rungs) - 1)):
        here = [each for each in climbers if each.trained >= rungs[rung]]
        for each in ordered(here, rungs[rung])[: len(here) // KEPT]:
            if each.resting and each.trained < rungs[rung + 1]:
                return Promotion(each.number, rungs[rung + 1])
    return None


def completion(climbers: Sequence[Climber], rungs: Sequence[int], front: Sequence[int]) -> Promotion | None:
    """Return the next member of the front that is not trained to the end: the front that is shown has had it all.

    Args:
        front: numbers of the trials on it, in the order in which they go on.
    """
    by_number = {each.number: each for each in climbers}
    for number in front:
        each = by_number.get(number)
        if each is not None and each.resting and each.trained < rungs[-1]:
            return Promotion(number, next(epochs for epochs in rungs if epochs > each.trained))
    return None


def expected_epochs(rungs: Sequence[int], trials: int, through: int) -> float:
    """Return about how many epochs of training a search with rungs takes.

    Args:
        rungs: epochs, the last the whole training.
        through: trials that go to the last rung: for comparison, or because they end on the front.
    """
    lengths = [after - before for before, after in zip((0, *rungs), rungs, strict=False)]
    return sum(length * count for length, count in zip(lengths, expected(rungs, trials, through), strict=True))


def expected(rungs: Sequence[int], trials: int, through: int) -> list[float]:
    """Return about how many trials come to each rung."""
    return [max(min(through, trials), trials / KEPT**level) for level in range(len(rungs))]


def ordered(climbers: Sequence[Climber], epochs: int) -> list[Climber]:
    """Return trials best first, as they stood after so many epochs."""
    left = {each.number: (each, each.accuracy_at(epochs)) for each in climbers}
    found: list[Climber] = []
    while left:
        front = _non_dominated(list(left.values()))
        added = _added(front)
        found += sorted((each for each, _ in front), key=lambda each: (-added[each.number], each.number))
        for each, _ in front:
            del left[each.number]
    return found


def _non_dominated(standing: Sequence[tuple[Climber, float]]) -> list[tuple[Climber, float]]:
    """Return those that none of the others beats, cheapest first; several may be equal."""
    front: list[tuple[Climber, float]] = []
    for each, accuracy in sorted(standing, key=lambda item: (item[0].cost, -item[1], item[0].number)):
        if not front or accuracy > front[-1][1] or (each.cost, accuracy) == (front[-1][0].cost, front[-1][1]):
            front.append((each, accuracy))
    return front


def _added(front: Sequence[tuple[Climber, float]]) -> dict[int, float]:
    """Return the area over log cost that each alone dominates; infinite at both ends, none for one of several equal."""
    added = {each.number: math.inf for each, _ in front}
    for (_, below), (each, accuracy), (dearer, _) in zip(front, front[1:], front[2:], strict=False):
        added[each.number] = math.log(dearer.cost / each.cost) * (accuracy - below)
    return added
