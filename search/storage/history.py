"""What a study knows: the results of its trials, the front among them, and each after its first leg."""

from collections.abc import Callable, Sequence

from runners.trial import TrialResult
from search.results.pareto import FLOPS, ParetoFront, inside, objectives
from spaces.budget import Budget


class Known:
    """The results so far.

    Args:
        budgets: absolute; no network outside of them is on the front.
        axis: cost of the front, "flops" or "latency".

    Attributes:
        front: the non-dominated networks inside the budgets.
        first: trial number -> its result after its first leg, where all have had the same training.
    """

    def __init__(self, budgets: Sequence[Budget], axis: str = FLOPS) -> None:
        self._budgets, self._axis = tuple(budgets), axis
        self._results: dict[int, TrialResult] = {}
        self._by_key: dict[str, TrialResult] = {}
        self.first: dict[int, TrialResult] = {}
        self.front = ParetoFront(axis=axis)

    @property
    def results(self) -> tuple[TrialResult, ...]:
        """Every result, failed ones too, in the order of the trials' numbers."""
        return tuple(self._results[number] for number in sorted(self._results))

    @property
    def numbers(self) -> frozenset[int]:
        """The numbers of the trials that have one."""
        return frozenset(self._results)

    def of(self, number: int) -> TrialResult:
        """Return the result of a trial, of several legs that of the last."""
        return self._results[number]

    def like(self, key: str) -> TrialResult | None:
        """Return the result of an equal candidate."""
        return self._by_key.get(key)

    def keep(self, result: TrialResult) -> None:
        """Take a result in, in place of an earlier one of its trial."""
        number = result.trial.number
        anew = number in self._results  # an earlier one may be on the front
        self._results[number] = self._by_key[result.trial.key()] = result
        self.first.setdefault(number, result)
        before = ParetoFront(axis=self._axis) if anew else self.front
        others = self._results.values() if anew else [result]
        self.front = before.with_results(inside(others, self._budgets, self._axis))

    def best_at(self, target: Budget) -> TrialResult | None:
        """Return the most accurate network that the front may have and that is inside this budget, too."""
        allowed = inside(self._results.values(), self._budgets, self._axis)
        found = [each for each in allowed if each.cost is not None and target.allows(each.cost)]
        return max(found, key=lambda each: objectives(each)[1], default=None)

    def revise(self, change: Callable[[TrialResult], TrialResult]) -> None:
        """Change every network."""
        for result in self.results:
            self.keep(result.map_networks(change))
