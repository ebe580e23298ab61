"""The result of a trial from the results of its training segments."""

import dataclasses
from typing import Any

import pytest

from pruning.base import Goal
from runners.trial import EpochReport, TrainingSegment, Trial, TrialResult, TrialState
from search.schedulers.segments import KEPT_AFTER, NOT_CONTINUED, end_trial, first_result, merge, reopen
from spaces.cost import Cost

FIRST, SECOND = TrainingSegment(1), TrainingSegment(2, trained=1, start=b"1")


def result(accuracy: float, *epochs: int, segment: TrainingSegment = FIRST, **changes: Any) -> TrialResult:
    """Return the result of a segment with a report after each of these epochs, of 10 s, 4 s of which were training."""
    curve = tuple(EpochReport(0, epoch, accuracy, 2.0 * epoch) for epoch in epochs)
    trial = Trial(0, "l2", Goal(), segment=segment)
    made = TrialResult(trial, TrialState.COMPLETE, accuracy, Cost(10, 5), curve=curve, seconds=10.0, train_seconds=4.0)
    return dataclasses.replace(made, **changes)


def failed(error: str) -> TrialResult:
    return dataclasses.replace(result(0.0), state=TrialState.FAILED, accuracy=None, error=error)


def after_first(accuracy: float = 0.5, **changes: Any) -> TrialResult:
    return first_result(result(accuracy, 0, 1, checkpoint=b"1", path="0.pt", note={"moves": 3}, **changes), FIRST)


def test_the_first_segment_gives_its_trial_a_rung_and_leaves_no_weights_in_it() -> None:
    first = after_first()
    assert first.rungs == ((1, 0.5),)
    assert first.trial.segment is None


def test_a_trial_whose_workers_were_lost_in_a_segment_is_continued_by_a_resumed_search() -> None:
    lost = merge(after_first(), dataclasses.replace(failed("ActorDiedError"), lost=True), SECOND)
    assert lost.note[NOT_CONTINUED] == "to 3 epochs: ActorDiedError"
    assert reopen(lost).note == after_first().note
    own = merge(after_first(), failed("the loss is not finite"), SECOND)
    assert reopen(own).note == own.note


def test_a_first_segment_that_was_stopped_ends_where_its_curve_does() -> None:
    long = TrainingSegment(4)
    stopped = result(0.5, 0, 1, 2, segment=long, state=TrialState.STOPPED)
    assert first_result(stopped, long).rungs == ((2, 0.5),)


def test_a_whole_training_and_a_failed_one_have_no_rungs() -> None:
    assert first_result(result(0.5, 0, 1), None).rungs == ()
    assert first_result(failed("no memory"), FIRST).rungs == ()


def test_the_better_network_of_a_longer_training_replaces_the_earlier_one() -> None:
    later = result(0.7, 2, 3, segment=SECOND, checkpoint=b"3", path="0-e3.pt", note={"bits": 4})
    merged = merge(after_first(), later, SECOND)
    assert (merged.accuracy, merged.checkpoint, merged.path) == (0.7, b"3", "0-e3.pt")
    assert merged.rungs == ((1, 0.5), (3, 0.7))
    assert merged.note == {"moves": 3, "bits": 4}
    assert (merged.seconds, merged.train_seconds) == (20.0, 8.0)
    assert [(report.epoch, report.seconds) for report in merged.curve] == [(0, 0.0), (1, 2.0), (2, 14.0), (3, 16.0)]


def test_a_longer_training_with_a_worse_network_keeps_the_earlier_one_and_says_after_how_many_epochs() -> None:
    merged = merge(after_first(), result(0.4, 2, 3, segment=SECOND, checkpoint=b"3", path="0-e3.pt"), SECOND)
    assert (merged.accuracy, merged.checkpoint, merged.path) == (0.5, b"1", "0.pt")
    assert merged.rungs == ((1, 0.5), (3, 0.4))
    assert merged.note == {"moves": 3, KEPT_AFTER: 1}
    third = TrainingSegment(1, trained=3, start=b"1")
    better = merge(merged, result(0.6, 4, segment=third), third)
    assert better.note == {"moves": 3}


@pytest.mark.parametrize(("accuracy", "rungs"), [(0.4, ((1, 0.5),)), (0.6, ((1, 0.5), (2, 0.6)))])
def test_a_stopped_segment_counts_as_far_as_it_came_where_it_was_better(
    accuracy: float, rungs: tuple[tuple[int, float], ...]
) -> None:
    merged = merge(after_first(), result(accuracy, 2, segment=SECOND, state=TrialState.STOPPED), SECOND)
    assert merged.rungs == rungs
    assert merged.seconds == 20.0


def test_a_failed_segment_leaves_the_network_and_ends_the_trial_with_the_reason() -> None:
    merged = merge(after_first(), failed("no\nmemory"), SECOND)
    assert (merged.state, merged.accuracy, merged.rungs) == (TrialState.COMPLETE, 0.5, ((1, 0.5),))
    assert merged.note[NOT_CONTINUED] == "to 3 epochs: no memory"
    assert end_trial(after_first(), "the reason").note == {"moves": 3, NOT_CONTINUED: "the reason"}


def test_the_latency_of_the_network_stays_with_it() -> None:
    """Training changes no architecture."""
    first = dataclasses.replace(after_first(), latency=({"refused": "", "seconds": 1.0},))
    merged = merge(first, result(0.7, 2, 3, segment=SECOND), SECOND)
    assert merged.latency == ({"refused": "", "seconds": 1.0},)
