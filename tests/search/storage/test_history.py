"""The results of a search so far, and the front among them."""

import dataclasses
import random
from typing import Any

from chain_space import chain
from made_up_search import problem_of

from pruning.base import Goal
from runners.trial import Trial, TrialResult, TrialState
from search.results.pareto import ParetoFront, inside
from search.storage.history import History
from spaces.budget import Budget
from spaces.cost import Cost

PROBLEM = problem_of(chain(), (Budget("flops", 1_000),))


def result(number: int, flops: int, accuracy: float, **changes: Any) -> TrialResult:
    trial = Trial(number, "l2", Goal(), {"setting": number})
    made = TrialResult(trial, TrialState.COMPLETE, accuracy, Cost(flops, 10))
    return dataclasses.replace(made, **changes)


def test_results_come_in_the_order_of_their_numbers_and_are_found_by_number_and_key() -> None:
    second, first = result(1, 200, 0.6), result(0, 100, 0.5)
    history = History(PROBLEM, [second, first])
    assert history.results == (first, second)
    assert history.numbers == {0, 1}
    assert history.result(1) == history.find(second.trial.key()) == second
    assert history.find("unknown") is None


def test_the_front_has_the_non_dominated_networks_inside_the_budgets() -> None:
    history = History(PROBLEM, [result(0, 100, 0.5), result(1, 200, 0.4), result(2, 1_001, 0.9), result(3, 900, 0.8)])
    assert [member.label for member in history.front] == ["0", "3"]


def test_a_longer_training_replaces_the_shorter_one_but_not_the_first_result() -> None:
    """Its better network may leave the front when the later one is worse."""
    first, other, later = result(0, 100, 0.5), result(1, 200, 0.4), result(0, 100, 0.3)
    history = History(PROBLEM, [first, other])
    assert [member.label for member in history.front] == ["0"]
    history.add(later)
    assert history.results == (later, other)
    assert history.first_results == (first, other)
    assert [member.label for member in history.front] == ["0", "1"]


def test_after_any_change_the_front_is_that_of_all_present_results() -> None:
    """Costs and accuracies are coarse, so that networks are often equal or give way to others."""
    draw, history, present = random.Random(0), History(PROBLEM), dict[int, TrialResult]()
    for _ in range(400):
        number, made = draw.randrange(40), []
        for index in range(3):
            made.append(result(number, draw.randrange(1, 12) * 100, draw.randrange(10) / 10, intermediate_index=index))
        present[number] = dataclasses.replace(made[0], intermediate_networks=tuple(made[1 : 1 + draw.randrange(3)]))
        history.add(present[number])
        assert history.front.members == ParetoFront(inside(present.values(), PROBLEM.budgets)).members
    assert history.results == tuple(present[number] for number in sorted(present))


def test_the_best_network_at_a_target_may_be_an_intermediate_one_and_none_is_over_a_budget() -> None:
    intermediate = result(1, 300, 0.7, intermediate_index=1)
    history = History(PROBLEM, [result(0, 100, 0.5), result(1, 1_100, 0.9, intermediate_networks=(intermediate,))])
    assert history.best_at(Budget("flops", 50)) is None
    found = [history.best_at(Budget("flops", limit)) for limit in (100, 300, 2_000)]
    assert [None if network is None else network.label for network in found] == ["0", "1.1", "1.1"]


def test_a_good_reading_lets_a_network_on_the_front_of_latency() -> None:
    problem = problem_of(chain(), ("1kflops", "2ms"), objective="accuracy,latency")
    history = History(problem, [result(0, 100, 0.5), result(1, 200, 0.6)])
    assert not len(history.front)
    history.add_latency("0", [{"refused": "", "seconds": 1e-3, "low": 0.9e-3, "high": 1.1e-3}])
    history.add_latency("1", [{"refused": "busy", "seconds": None, "low": None, "high": None}])
    assert [member.label for member in history.front] == ["0"]
    history.add_latency("1", [{"refused": "", "seconds": 2e-3, "low": 1.9e-3, "high": 2.1e-3}])
    assert [member.label for member in history.front] == ["0"]  # its upper end is over the budget
    assert history.result(1).latency[0]["high"] == 2.1e-3


def test_a_revision_changes_every_network_and_the_front_with_it() -> None:
    history = History(PROBLEM, [result(0, 100, 0.5, path="0.pt"), result(1, 200, 0.6)])

    def lose_weights(network: TrialResult) -> TrialResult:
        return dataclasses.replace(network, state=TrialState.FAILED) if network.path else network

    history.revise(lose_weights)
    assert [found.state for found in history.results] == [TrialState.FAILED, TrialState.COMPLETE]
    assert [member.label for member in history.front] == ["1"]
