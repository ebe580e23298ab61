"""History: the results of a search so far, and the front among them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from runners.trial import TrialResult
from search.problem import Problem
from search.results.pareto import ParetoFront, inside, objectives
from spaces.budget import Budget


class History:
    """The results of a search so far; `front` are the non-dominated networks inside the budgets.

    Args:
        results: found by an earlier process, in the order of recording; of several training segments of one trial the
            last counts.
    """

    def __init__(self, problem: Problem, results: Iterable[TrialResult] = ()) -> None:
        self.problem = problem
        self._results: dict[int, TrialResult] = {}
        self._by_candidate: dict[str, TrialResult] = {}
        self._first: dict[int, TrialResult] = {}
        self.front = ParetoFront(axis=problem.axis)
        for result in results:
            self.add(result)

    @property
    def results(self) -> tuple[TrialResult, ...]:
        """Every result, failed ones too, in the order of the trial numbers."""
        return tuple(self._results[number] for number in sorted(self._results))

    @property
    def searched(self) -> tuple[TrialResult, ...]:
        """The results of the trials of the search, without those that the final training made."""
        return tuple(result for result in self.results if not result.trial.final)

    @property
    def first_results(self) -> Sequence[TrialResult]:
        """The result of every trial of the search after its first training segment, as far as all are trained."""
        return tuple(result for result in self._first.values() if not result.trial.final)

    @property
    def numbers(self) -> frozenset[int]:
        """The numbers of the trials that have a result."""
        return frozenset(self._results)

    def result(self, number: int) -> TrialResult:
        """Return the result of a trial; of several training segments, of the last."""
        return self._results[number]

    def find(self, candidate_key: str) -> TrialResult | None:
        """Return the result of a candidate, whatever its trial was cut from; None when it has none."""
        return self._by_candidate.get(candidate_key)

    def best_at(self, target: Budget) -> TrialResult | None:
        """Return the most accurate network that the front may have and that is inside this budget too, or None."""
        allowed = inside(self._results.values(), self.problem.budgets, self.problem.axis)
        found = [network for network in allowed if network.cost is not None and target.allows(network.cost)]
        return max(found, key=lambda network: objectives(network)[1], default=None)

    def add(self, result: TrialResult) -> None:
        """Add a result, in place of an earlier one of its trial."""
        number = result.trial.number
        replaces = number in self._results  # the earlier one may be on the front
        self._results[number] = result
        if not result.trial.final:  # what the final training cuts from a network is no candidate of the search
            self._by_candidate[result.trial.candidate_key()] = result
        self._first.setdefault(number, result)
        front = ParetoFront(axis=self.problem.axis) if replaces else self.front
        candidates = self._results.values() if replaces else [result]
        self.front = front.with_results(inside(candidates, self.problem.budgets, self.problem.axis))

    def add_latency(self, label: str, readings: Sequence[Mapping[str, Any]]) -> None:
        """Add the latency readings of a network; a good one lets it on the front, where its other budgets hold."""

        def measured(network: TrialResult) -> TrialResult:
            return replace(network, latency=tuple(readings)) if network.label == label else network

        self.add(self.result(int(label.partition(".")[0])).map_networks(measured))

    def revise(self, change: Callable[[TrialResult], TrialResult]) -> None:
        """Apply a change to every network, e.g. mark those whose weights are lost."""
        for result in self.results:
            self.add(result.map_networks(change))
