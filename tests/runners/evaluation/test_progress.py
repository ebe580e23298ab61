"""The measurements of a running trial, and the time that it has taken."""

from typing import Any

import pytest

from pruning.base import Goal
from runners.evaluation.progress import TrialProgress
from runners.trial import Trial


class Watch:
    """A clock that the test sets."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr("runners.evaluation.progress.time", watch)
    return watch


def test_only_the_time_of_active_blocks_is_active(watch: Any) -> None:
    progress = TrialProgress(Trial(3, "l2", Goal()))
    watch.now += 2
    with progress.active():
        watch.now += 5
    watch.now += 1
    assert (progress.seconds(), progress.active_seconds) == (8.0, 5.0)


def test_a_block_that_raises_is_counted_too(watch: Any) -> None:
    progress = TrialProgress(Trial(3, "l2", Goal()))

    def work() -> None:
        with progress.active():
            watch.now += 5
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        work()
    assert progress.active_seconds == 5.0


def test_a_report_is_added_to_the_curve(watch: Any) -> None:
    progress = TrialProgress(Trial(3, "l2", Goal()))
    watch.now += 4
    report = progress.report(1, 0.5)
    assert (report.trial, report.epoch, report.accuracy, report.seconds) == (3, 1, 0.5, 4.0)
    assert progress.curve == [report]
