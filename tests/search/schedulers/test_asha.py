"""Which trials are trained on at a rung, by hand-computed figures."""

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from chain_space import chain
from made_up_search import problem_of

from pruning.base import Goal
from runners.trial import TrainingSegment, Trial, TrialResult, TrialState
from search.results.pareto import objectives
from search.schedulers.asha import (
    Contender,
    MultiObjectiveASHA,
    Promotion,
    exempt_trials,
    expected_epochs,
    final_promotion,
    ordered,
    promotion,
)
from search.schedulers.segments import NOT_CONTINUED
from search.storage.history import History
from spaces.cost import Cost

RUNGS = (1, 2, 4)


def contender(number: int, flops: int, *accuracies: float, exempt: bool = False, paused: bool = True) -> Contender:
    return Contender(number, flops, tuple(zip(RUNGS, accuracies, strict=False)), exempt, paused)


def numbers(contenders: list[Contender]) -> list[int]:
    return [contender.number for contender in contenders]


def promoted(contenders: list[Contender], first: int = 0) -> list[int]:
    """Promote until no trial has earned it; each has the same accuracy after its longer training."""
    found = []
    while (step := promotion(contenders, RUNGS, first)) is not None:
        found.append(step.number)
        index = numbers(contenders).index(step.number)
        before = contenders[index]
        rungs = (*before.rungs, (step.epochs, before.rungs[-1][1]))
        contenders[index] = Contender(before.number, before.cost, rungs, before.exempt, before.paused)
    return found


def test_the_better_half_goes_on_and_dominated_trials_stay() -> None:
    front = [contender(0, 100, 0.9), contender(1, 10, 0.6)]
    behind = [contender(2, 110, 0.8), contender(3, 12, 0.5)]
    assert promotion([*behind, *front], RUNGS, 0) in (Promotion(0, 2), Promotion(1, 2))
    assert set(promoted([*behind, *front])) == {0, 1}


def test_a_cheap_net_is_not_behind_for_being_less_accurate() -> None:
    """A front from 1 to 1,000 MFLOPs with accuracies from 20% to 95%, and as many trials just behind each member."""
    front = [contender(i, 10**i, 0.2 + 0.25 * i) for i in range(4)]
    behind = [contender(4 + i, 10**i + 1, 0.2 + 0.25 * i - 0.01) for i in range(4)]
    assert set(numbers(ordered([*behind, *front], 1)[:4])) == {0, 1, 2, 3}
    assert {0, 1, 2, 3} <= set(promoted([*behind, *front]))
    assert not {4, 5, 6, 7} & set(promoted([*behind, *front]))


def test_the_least_accurate_net_of_all_goes_on_when_it_is_the_cheapest() -> None:
    trials = [contender(0, 1, 0.1), contender(1, 100, 0.91), contender(2, 100, 0.92), contender(3, 100, 0.93)]
    assert set(promoted(trials)) == {0, 3}


def test_within_a_rank_the_ends_come_first_and_then_the_most_added_area_over_log_cost() -> None:
    """Alone, 1 dominates ln(100 / 10) * 0.4 = 0.92, 2 dominates ln(1000 / 100) * 0.01 = 0.02."""
    trials = [contender(0, 1, 0.1), contender(1, 10, 0.5), contender(2, 100, 0.51), contender(3, 1000, 0.9)]
    assert numbers(ordered(trials, 1)) == [0, 3, 1, 2]


def test_equal_networks_share_a_rank_and_the_lower_number_comes_first() -> None:
    trials = [contender(5, 10, 0.5), contender(2, 10, 0.5), contender(7, 10, 0.4)]
    assert numbers(ordered(trials, 1)) == [2, 5, 7]


def test_trials_are_compared_by_their_accuracy_at_that_rung() -> None:
    grown = contender(0, 10, 0.4, 0.9)
    assert grown.accuracy_at(1) == 0.4
    assert grown.accuracy_at(2) == 0.9
    assert numbers(ordered([grown, contender(1, 10, 0.5)], 1)) == [1, 0]
    assert Contender(2, 10, ((1, 0.7), (2, 0.6))).accuracy_at(2) == 0.7  # its better network is kept


def test_the_highest_rung_is_served_first_and_one_trial_alone_proves_nothing() -> None:
    assert promotion([contender(0, 10, 0.5)], RUNGS, 0) is None
    trials = [contender(0, 10, 0.5, 0.6), contender(1, 10, 0.4, 0.5), contender(2, 10, 0.3), contender(3, 10, 0.6)]
    assert promotion(trials, RUNGS, 0) == Promotion(0, 4)


@pytest.mark.parametrize("exempt", [True, False])
def test_an_exempt_trial_goes_on_whatever_the_others_did(exempt: bool) -> None:
    trials = [contender(0, 10, 0.9, 0.9, 0.9), contender(1, 10, 0.1, exempt=exempt)]
    assert promotion(trials, RUNGS, 0) == (Promotion(1, 2) if exempt else None)


def test_under_the_first_rung_no_trial_is_judged() -> None:
    trials = [contender(0, 10, 0.9), contender(1, 10, 0.1)]
    assert promoted(list(trials), first=1) == [0, 1, 0]
    assert promotion(trials, RUNGS, 2) == Promotion(0, 4)


def test_a_trial_that_runs_or_cannot_go_on_is_left_alone_but_counts() -> None:
    trials = [contender(0, 10, 0.9, paused=False), contender(1, 10, 0.5)]
    assert promotion(trials, RUNGS, 0) is None
    assert promotion([contender(0, 10, 0.9), contender(1, 10, 0.5)], RUNGS, 0, running=[0]) is None
    assert promotion([contender(2, 10, 0.9, paused=False, exempt=True)], RUNGS, 0) is None


def test_members_of_the_front_are_trained_to_the_end_one_rung_at_a_time() -> None:
    trials = [contender(0, 10, 0.9, 0.9, 0.9), contender(1, 5, 0.5, 0.6), contender(2, 1, 0.3, paused=False)]
    assert final_promotion(trials, RUNGS, [2, 1, 0]) == Promotion(1, 4)
    assert final_promotion(trials, RUNGS, [0]) is None
    assert final_promotion(trials, RUNGS, [9]) is None  # trained at once


def test_the_forecast_of_epochs() -> None:
    assert expected_epochs(RUNGS, 16, 0) == 16 * 1 + 8 * 1 + 4 * 2
    assert expected_epochs(RUNGS, 16, 8) == 16 * 1 + 8 * 1 + 8 * 2
    assert math.isclose(expected_epochs(RUNGS, 3, 9), 3 * 4)


def asha(rungs: tuple[int, ...] = RUNGS, results: Sequence[TrialResult] = ()) -> MultiObjectiveASHA:
    problem = problem_of(chain(), ("1kflops",), trials=24, rungs=rungs)
    return MultiObjectiveASHA(problem, lambda result: objectives(result)[0], results)


def finished(number: int, flops: int, *accuracies: float, baseline: str = "", **changes: Any) -> TrialResult:
    rungs = tuple(zip(RUNGS, accuracies, strict=False))
    trial = Trial(number, "l2", Goal(), {"setting": number}, baseline=baseline)
    result = TrialResult(trial, TrialState.COMPLETE, max(accuracies), Cost(flops, 10), rungs=rungs)
    return dataclasses.replace(result, **changes)


def test_baselines_and_the_first_three_others_are_trained_to_the_end() -> None:
    trials = [Trial(number, "l2", Goal(), baseline="uniform" if number in (0, 4) else "") for number in range(8)]
    assert exempt_trials(trials) == {0, 4, 1, 2, 3}


def test_the_first_segment_ends_at_the_first_rung_and_without_rungs_there_is_none() -> None:
    trial = Trial(0, "l2", Goal())
    assert asha().first_segment(trial) == TrainingSegment(1)
    assert asha(()).first_segment(trial) is None
    assert asha().first_segment(Trial(1, "scratch", Goal())) is None  # a method that cannot pause


def test_a_rung_that_does_not_rank_networks_as_the_end_does_judges_none(caplog: pytest.LogCaptureFixture) -> None:
    """Within each of three bands of cost the first rung has the opposite order of the end, the second the same."""
    results = []
    for number in range(12):
        flops, place = 10 * 10 ** (number // 4) + number, number % 4
        results.append(finished(number, flops, 0.5 - 0.01 * place, 0.6 + 0.01 * place, 0.7 + 0.01 * place))
    scheduler = asha()
    scheduler.observe(results)
    assert "1 epochs do not rank networks" in caplog.text
    assert "rank correlation -1.00 over 12 trials): from now on trials are first judged after 2" in caplog.text
    assert scheduler.first_segment(Trial(12, "l2", Goal())) == TrainingSegment(2)
    assert scheduler.first_segment(Trial(12, "l2", Goal(), baseline="uniform")) == TrainingSegment(1)
    assert asha(results=results).first_segment(Trial(12, "l2", Goal())) == TrainingSegment(2)  # decides as before
    scheduler.observe(results[:4])
    assert caplog.messages[-1] == "trials are judged again after 1 epochs, which rank networks well enough"


def test_trials_that_run_are_over_a_budget_or_have_ended_are_not_promoted() -> None:
    running, over, ended = (
        finished(0, 100, 0.5, baseline="uniform"),
        finished(1, 2_000, 0.5, baseline="uniform"),
        finished(2, 100, 0.5, baseline="uniform", note={NOT_CONTINUED: "no memory"}),
    )
    results = [running, over, ended]
    history = History(problem_of(chain(), ("1kflops",)), results)
    assert asha().promotion(history, {0: running.trial}, final=False) is None
    assert asha().promotion(history, {}, final=False) == Promotion(0, 2)
    assert asha(()).promotion(history, {}, final=False) is None


def test_members_of_the_front_are_promoted_once_there_are_no_new_candidates() -> None:
    exempt = [finished(number, 100 + number, 0.5, 0.5, 0.5) for number in range(3)]
    members = [finished(3, 10, 0.3), finished(4, 500, 0.6)]
    history = History(problem_of(chain(), ("1kflops",)), [*exempt, *members])
    one = {4: members[1].trial}
    assert asha().promotion(history, one, final=False) == Promotion(3, 2)  # the cheapest of five is in the better half
    both = one | {3: members[0].trial}
    assert asha().promotion(history, both, final=True) is None


def test_a_scheduler_that_has_seen_many_results_decides_as_one_that_sees_them_for_the_first_time() -> None:
    draw, history = random.Random(0), History(problem_of(chain(), ("1kflops",), trials=99, rungs=RUNGS))
    old, promoted, pending = asha(), 0, dict[int, Trial]()
    for number in range(60):
        history.add(finished(number, draw.randrange(100, 1000), draw.random(), baseline="uniform" * (number % 20 == 0)))
        old.observe(history.results)
        new = asha(results=history.results)
        assert old._first == new._first
        while (step := old.promotion(history, pending, final=False)) is not None:
            assert new.promotion(history, pending, final=False) == step
            trial = history.result(step.number)
            if number % 3 == 0 and step.number not in pending:  # a worker has it for a while
                pending[step.number] = trial.trial
                continue
            rungs = (*trial.rungs, (step.epochs, draw.random()))
            note = {NOT_CONTINUED: "a reason"} if draw.random() < 0.1 else {}
            history.add(dataclasses.replace(trial, rungs=rungs, note=note))
            promoted += 1
        assert new.promotion(history, pending, final=False) is None
        pending.clear()
    assert promoted > 30
