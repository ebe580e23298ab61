import dataclasses
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.base import Goal
from runners.trial import Trial, TrialResult, TrialState
from search.results.pareto import (
    LATENCY,
    ParetoFront,
    affordable,
    dominates,
    inside,
    measured,
    non_dominated,
    non_dominated_ranks,
    objectives,
)
from spaces.budget import Budget
from spaces.cost import Cost

DENSE = 100


def result(number: int, flops: int, accuracy: float | None, state: TrialState = TrialState.COMPLETE) -> TrialResult:
    return TrialResult(Trial(number, "l2", Goal()), state, accuracy, Cost(flops, flops // 2))


# Few values, so that dominance, ties in one objective and ties in both are all common.
results = st.lists(st.tuples(st.integers(1, DENSE), st.integers(0, 10)), max_size=25).map(
    lambda networks: [result(number, flops, tenths / 10) for number, (flops, tenths) in enumerate(networks)]
)


@given(results)
def test_no_member_dominates_another_and_the_cheapest_comes_first(given_results: list[TrialResult]) -> None:
    members = ParetoFront(tuple(given_results)).members
    assert not any(dominates(left, right) for left in members for right in members)
    assert [objectives(member) for member in members] == sorted({objectives(member) for member in members})


@given(results)
def test_a_result_that_is_left_out_is_dominated_or_a_later_tie(given_results: list[TrialResult]) -> None:
    front = ParetoFront(tuple(given_results))
    for left_out in given_results:
        if left_out in front.members:
            continue
        assert any(
            dominates(member, left_out)
            or (objectives(member) == objectives(left_out) and member.trial.number < left_out.trial.number)
            for member in front
        )


@given(results, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(given_results: list[TrialResult], rng: random.Random) -> None:
    front = ParetoFront()
    for arrived in rng.sample(given_results, len(given_results)):
        front = front.with_results([arrived])
    assert front == ParetoFront(tuple(given_results))


def test_equal_members_stay_only_where_they_are_wanted() -> None:
    members = [("b", 2, 0.5), ("a", 1, 0.5), ("c", 1, 0.5), ("d", 3, 0.7), ("e", 1, 0.4)]

    def objectives_of(member: tuple[str, int, float]) -> tuple[float, float]:
        return member[1:]

    assert [name for name, *_ in non_dominated(members, objectives_of)] == ["a", "d"]
    assert [name for name, *_ in non_dominated(members, objectives_of, keep_equal=True)] == ["a", "c", "d"]


@given(results)
def test_hypervolume_never_falls_and_stays_a_share(given_results: list[TrialResult]) -> None:
    front, before = ParetoFront(), 0.0
    for arrived in given_results:
        front = front.with_results([arrived])
        now = front.hypervolume(DENSE)
        assert before - 1e-12 <= now <= 1
        before = now


def test_hypervolume_is_the_area_under_the_stairs() -> None:
    front = ParetoFront((result(0, 20, 0.5), result(1, 60, 0.9)))
    assert front.hypervolume(100) == pytest.approx(0.4 * 0.5 + 0.4 * 0.9)
    assert front.hypervolume(60) == pytest.approx(40 / 60 * 0.5)  # a member at the reference adds nothing
    assert ParetoFront().hypervolume(100) == 0.0


def test_failed_and_unmeasured_results_stay_out() -> None:
    stopped = result(4, 10, 0.5, TrialState.STOPPED)
    out = (
        result(0, 1, 0.9, TrialState.FAILED),
        result(1, 1, None),
        result(2, 1, math.nan),
        dataclasses.replace(result(3, 1, 0.9), cost=None),
    )
    assert not any(measured(result) for result in out)
    assert ParetoFront((*out, stopped)).members == (stopped,)


def test_comparing_an_unmeasured_result_is_an_error() -> None:
    with pytest.raises(ValueError, match="trial 3 is complete and has no cost"):
        objectives(result(3, 1, None))


def test_best_is_the_most_accurate_inside_all_budgets() -> None:
    cheap, middle, dear = members = (result(0, 20, 0.5), result(1, 60, 0.8), result(2, 90, 0.9))
    front = ParetoFront(members)
    assert front.best() is dear
    assert front.best([Budget("flops", 60)]) is middle
    assert front.best([Budget("flops", 60), Budget("params", 10)]) is cheap
    assert front.best([Budget("flops", 19)]) is None
    assert (len(front), list(front)) == (3, list(members))


def test_intermediate_networks_inside_the_budgets_count_even_where_the_trial_failed() -> None:
    intermediate_networks = tuple(
        dataclasses.replace(result(0, flops, 0.5), intermediate_index=i)
        for i, flops in enumerate((60, 50, 40), start=1)
    )
    failed = dataclasses.replace(result(0, 10, None, TrialState.FAILED), intermediate_networks=intermediate_networks)
    found = inside([failed, result(1, 50, 0.5), result(2, 51, 0.9)], [Budget("flops", 50)])
    assert [network.label for network in found] == ["0.2", "0.3", "1"]


def test_of_equals_a_trials_own_network_stays_before_its_intermediate_ones() -> None:
    own, intermediate_networks = result(3, 50, 0.5), dataclasses.replace(result(3, 50, 0.5), intermediate_index=1)
    assert ParetoFront((intermediate_networks, own)).members == (own,)


def timed(network: TrialResult, seconds: float | None) -> TrialResult:
    """The same network with a reading of 1% to either side, or a refused one."""
    figures = {"seconds": seconds, "low": 0.99 * seconds, "high": 1.01 * seconds} if seconds else {}
    return dataclasses.replace(network, latency=({"refused": "" if seconds else "a busy machine", **figures},))


def test_a_latency_budget_takes_what_measured_inside_it_with_the_upper_end() -> None:
    networks = [
        timed(result(0, 10, 0.5), 0.098),
        timed(result(1, 10, 0.5), 0.0995),  # up to 0.1005
        timed(result(2, 10, 0.5), None),
        result(3, 10, 0.5),
    ]
    assert [network.label for network in inside(networks, [Budget("latency", 0.1)])] == ["0"]
    assert [network.label for network in affordable(networks, [Budget("latency", 0.1), Budget("flops", 10)])] == list(
        "0123"
    )


def test_along_a_latency_axis_the_fastest_comes_first_and_what_has_no_reading_is_left_out() -> None:
    networks = (
        timed(result(0, 90, 0.6), 0.02),
        timed(result(1, 10, 0.9), 0.08),
        timed(result(2, 5, 0.5), 0.03),
        timed(result(3, 1, 0.99), None),
        result(4, 1, 0.99),
    )
    front = ParetoFront(networks, LATENCY)
    assert [network.label for network in front] == ["0", "1"]
    assert [network.label for network in front.with_results([timed(result(5, 9, 0.7), 0.01)])] == ["5", "1"]
    assert front.hypervolume(0.1) == pytest.approx(0.6 * 0.6 + 0.2 * 0.9)
    assert [network.label for network in inside(networks, [], LATENCY)] == ["0", "1", "2"]
    assert dominates(networks[0], networks[2], LATENCY)
    assert not dominates(networks[0], networks[2])


def test_ranks_are_the_fronts_that_are_left_one_after_the_other() -> None:
    draw = random.Random(0)
    members = [(float(draw.randrange(12)), draw.randrange(12) / 12) for _ in range(200)]
    left, expected = sorted(enumerate(members)), []
    while left:
        front = non_dominated(left, lambda member: member[1], keep_equal=True)
        expected.append(front)
        left = [member for member in left if member not in front]
    assert non_dominated_ranks(enumerate(members), lambda member: member[1]) == expected
