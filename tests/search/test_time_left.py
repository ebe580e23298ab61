"""The time that is left of a search, against searches whose times are known in advance."""

import dataclasses

import pytest

from pruning.base import Goal
from runners.trial import Trial, TrialResult, TrialState
from search.time_left import NARROW_POWER, FinalCost, TimeLeft, Work, time_share
from spaces.cost import Cost
from spaces.widths import Widths

DENSE_FLOPS = 1000


def result(
    number: int, seconds: float, trained: int = 1, final_epochs: int = 0, flops: int = DENSE_FLOPS
) -> TrialResult:
    return TrialResult(
        Trial(number, "di", Goal(Widths({"a": 1}))),
        TrialState.COMPLETE,
        0.5,
        Cost(flops, 10),
        Widths({"a": 1}),
        seconds=seconds,
        rungs=((trained, 0.5),),
        final_epochs=final_epochs,
    )


def test_trials_that_cost_less_than_the_first_ones_are_foreseen_to_take_less() -> None:
    time_left = TimeLeft(Work(trials=(40.0, 40.0, 8.0, 8.0, 4.0), epochs=1), 0.0, 2, DENSE_FLOPS)
    time_left.note(result(0, 60.0))
    time_left.note(result(1, 60.0))  # half as long again as foreseen: the machine is busy
    assert time_left.seconds(2, 5) == pytest.approx(1.5 * (8 + 8 + 4) / 2)
    assert time_left.seconds(5, 5) == 0


def test_a_trial_beyond_the_forecast_takes_the_mean() -> None:
    time_left = TimeLeft(Work(trials=(10.0, 20.0), epochs=1), 0.0, 1, DENSE_FLOPS)
    time_left.note(result(0, 10.0))
    time_left.note(result(1, 20.0))
    assert time_left.seconds(2, 4) == pytest.approx(30.0)


def test_the_final_training_counts_one_network_after_the_other_and_at_its_own_pace() -> None:
    work = Work(trials=(10.0,) * 4, epochs=1, final=8.0, final_epochs=5.0, closing=7.0)
    time_left = TimeLeft(work, 0.0, 2, DENSE_FLOPS)
    for number in range(4):
        time_left.note(result(number, 20.0))
    assert time_left.seconds(4, 4) == pytest.approx(2 * 5 * 8 + 7)  # at the pace of the trials, twice as long
    time_left.note(result(3, 20.0 + 6.0, trained=3, final_epochs=2, flops=DENSE_FLOPS // 4))
    done = 2 * 0.25**NARROW_POWER
    assert time_left.seconds(4, 4) == pytest.approx((5 - done) * 8 * (6 / (done * 8)) + 7)


def test_what_surrounds_the_training_of_a_network_cut_from_a_finished_one_counts_as_epochs() -> None:
    work = Work(trials=(10.0,) * 2, epochs=1, final=8.0, final_epochs=6.0, final_cost=FinalCost(heir_epochs=0.5))
    time_left = TimeLeft(work, 0.0, 2, DENSE_FLOPS)
    time_left.note(result(0, 10.0))
    time_left.note(result(1, 10.0))
    cut = result(2, 24.0, trained=2, final_epochs=2, flops=DENSE_FLOPS)
    time_left.note(dataclasses.replace(cut, trial=dataclasses.replace(cut.trial, final=True)))
    assert time_left.seconds(2, 2) == pytest.approx((6 - 2.5) * 8 * (24 / (2.5 * 8)))


def test_the_answers_of_the_teacher_count_at_its_own_flops() -> None:
    work = Work(trials=(10.0,) * 2, epochs=1, final=8.0, final_epochs=6.0, final_cost=FinalCost(teacher_epochs=0.25))
    time_left = TimeLeft(work, 0.0, 1, DENSE_FLOPS)
    time_left.note(result(0, 10.0))
    time_left.note(result(1, 10.0))
    by_dense = result(0, 10.0 + 12.0, trained=3, final_epochs=2, flops=DENSE_FLOPS // 2)
    time_left.note(dataclasses.replace(by_dense, note={"teacher": "dense"}))
    by_first = result(2, 9.0, trained=2, final_epochs=2, flops=DENSE_FLOPS // 8)
    time_left.note(dataclasses.replace(by_first, note={"teacher": "0"}))
    done = 2 * time_share(0.5) + 2 * 0.25 + 2 * time_share(0.125) + 2 * 0.25 * time_share(0.5)
    assert time_left.seconds(2, 2) == pytest.approx((6 - done) * (12 + 9) / done)


def test_a_search_with_rungs_goes_by_epochs_and_leaves_those_of_the_final_training_out() -> None:
    work = Work(trials=(30.0,) * 6, epochs=3, final=10.0, final_epochs=4.0)
    time_left = TimeLeft(work, 12.0, 2, DENSE_FLOPS)  # 12 epochs of trials, 10 s each
    time_left.note(result(0, 10.0))
    assert time_left.seconds(1, 6) == pytest.approx(11 * 10 / 2 + 4 * 10)
    time_left.note(result(0, 30.0, trained=3))  # a segment of two more epochs
    assert time_left.seconds(1, 6) == pytest.approx(9 * 10 / 2 + 4 * 10)
    time_left.note(result(0, 35.0, trained=4, final_epochs=1))
    assert time_left.seconds(1, 6) == pytest.approx(9 * 10 / 2 + 3 * 5)


def test_a_trial_that_failed_says_nothing_of_the_final_training() -> None:
    work = Work(trials=(10.0, 10.0), epochs=1, final=8.0, final_epochs=5.0)
    time_left = TimeLeft(work, 0.0, 1, DENSE_FLOPS)
    time_left.note(result(0, 10.0))
    failed = dataclasses.replace(result(1, 10.0), state=TrialState.FAILED, accuracy=None, cost=None, widths=None)
    time_left.note(failed)
    assert time_left.seconds(2, 2) == pytest.approx(40.0)


def test_once_the_networks_of_the_final_training_are_known_they_count_instead_of_the_forecast() -> None:
    work = Work(trials=(10.0,), epochs=1, final=8.0, final_epochs=5.0, closing=7.0)
    time_left = TimeLeft(work, 0.0, 1, DENSE_FLOPS)
    time_left.note(result(0, 10.0))
    assert time_left.seconds(1, 1, 0.25) == pytest.approx(0.25 * 8 + 7)
    assert time_left.seconds(1, 1, 0.0) == 0


def test_the_more_trials_have_finished_the_more_the_networks_so_far_count_for_the_final_training() -> None:
    work = Work(trials=(10.0,) * 4, epochs=1, final=8.0, final_epochs=6.0, closing=7.0)
    time_left = TimeLeft(work, 0.0, 1, DENSE_FLOPS)
    for number in range(3):
        time_left.note(result(number, 10.0))
    assert time_left.seconds(3, 4, 2.0) == pytest.approx(10 + (0.25 * 6 + 0.75 * 2) * 8 + 7)


def test_a_narrow_network_takes_more_than_its_share_of_the_flops() -> None:
    assert time_share(0.17) == pytest.approx(0.24, abs=0.01)  # as measured on cifar_resnet18
    assert time_share(1.5) == 1
