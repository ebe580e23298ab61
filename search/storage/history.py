"""History: the results of a search so far, and the front among them."""

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from runners.trial import TrialResult
from search.problem import Problem
from search.results.pareto import ParetoFront, inside, objectives, rank
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
        self._numbers: list[int] = []  # rising
        # What `results`, `searched` and `first_results` return, until a result changes them
        self._ordered: tuple[TrialResult, ...] | None = None
        self._searched: tuple[TrialResult, ...] | None = None
        self._first_results: tuple[TrialResult, ...] | None = None
        for result in results:
            self._note(result)
        self.front = self._whole_front()

    @property
    def results(self) -> tuple[TrialResult, ...]:
        """Every result, failed ones too, in the order of the trial numbers."""
        if self._ordered is None:
            self._ordered = tuple(self._results[number] for number in self._numbers)
        return self._ordered

    @property
    def searched(self) -> tuple[TrialResult, ...]:
        """The results of the trials of the search, without those that the final training made."""
        if self._searched is None:
            self._searched = tuple(result for result in self.results if not result.trial.final)
        return self._searched

    @property
    def first_results(self) -> Sequence[TrialResult]:
        """The result of every trial of the search after its first training segment, as far as all are trained."""
        if self._first_results is None:
            self._first_results = tuple(result for result in self._first.values() if not result.trial.final)
        return self._first_results

    @property
    def numbers(self) -> Set[int]:
        """The numbers of the trials that have a result."""
        return self._results.keys()

    @property
    def last_number(self) -> int:
        """The highest number of a trial that has a result; -1 without any."""
        return self._numbers[-1] if self._numbers else -1

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
        self._note(result)
        entering = inside([result], self.problem.budgets, self.problem.axis)
        self.front = self._front_with(entering, result.trial.number)

    def _note(self, result: TrialResult) -> None:
        """Add a result everywhere but to the front."""
        number = result.trial.number
        earlier = self._results.get(number)
        self._results[number] = result
        self._ordered = self._searched = None
        if earlier is None:
            bisect.insort(self._numbers, number)
        if not result.trial.final:  # what the final training cuts from a network is no candidate of the search
            self._by_candidate[result.trial.candidate_key()] = result
        if number not in self._first:
            self._first[number], self._first_results = result, None

    def _whole_front(self) -> ParetoFront:
        """Return the front of all results."""
        axis = self.problem.axis
        return ParetoFront(inside(self._results.values(), self.problem.budgets, axis), axis)

    def _front_with(self, entering: Sequence[TrialResult], number: int) -> ParetoFront:
        """Return the front with the networks of a trial in place of those that it had before.

        All results are gone through only where a network left the front that none of the new ones makes up for.
        """
        leaving = [member for member in self.front if member.trial.number == number]
        axis = self.problem.axis
        if not all(any(_makes_up_for(new, old, axis) for new in entering) for old in leaving):
            return self._whole_front()
        others = tuple(member for member in self.front if member.trial.number != number)
        return ParetoFront(others, axis).with_results(entering)

    def add_latency(self, label: str, readings: Sequence[Mapping[str, Any]]) -> None:
        """Add the latency readings of a network; a good one lets it on the front, where its other budgets hold."""

        def measured(network: TrialResult) -> TrialResult:
            return replace(network, latency=tuple(readings)) if network.label == label else network

        self.add(self.result(int(label.partition(".")[0])).map_networks(measured))

    def revise(self, change: Callable[[TrialResult], TrialResult]) -> None:
        """Apply a change to every network, e.g. mark those whose weights are lost."""
        for result in self.results:
            self._note(result.map_networks(change))
        self.front = self._whole_front()


def _makes_up_for(new: TrialResult, old: TrialResult, axis: str) -> bool:
    """Return whether a network keeps off the front whatever the old one did."""
    (cost, accuracy), (old_cost, old_accuracy) = objectives(new, axis), objectives(old, axis)
    return cost <= old_cost and accuracy >= old_accuracy and rank(new) <= rank(old)
