"""The contract of every runner: each trial that is asked for is told once, whatever becomes of it."""

import pytest

from pruning.base import Goal
from runners.base import RUNNERS
from runners.config import RunnerConfig
from runners.evaluation.context import SearchContext
from runners.evaluation.evaluate import evaluate
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from spaces.budget import Budget
from spaces.widths import Widths

IMPOSSIBLE, STOPPED, WITH_INTERMEDIATE = 3, 4, 6
EAGER = {"theta": 1e3, "scope": "all", "half_batches": 2, "warm_up_batches": 0, "search_share": 0.9}
TRIALS = [
    *(Trial(n, "l2", Goal(Widths({"0": 2 + n, "3": 8 - n})), seed=n) for n in range(3)),
    Trial(IMPOSSIBLE, "l2", Goal(Widths({"no such group": 1}))),
    Trial(STOPPED, "random", Goal(Widths({"0": 4, "3": 4}))),
    Trial(5, "random", Goal(Widths({"0": 4, "3": 4}))),
    Trial(WITH_INTERMEDIATE, "aofp", Goal(budgets=(Budget.parse("15%"),)), EAGER),
]


class Record:
    """An AskTell that records the calls, and returns None once, until the first trial is told."""

    def __init__(self) -> None:
        self.waiting = list(TRIALS)
        self.asked: list[int] = []
        self.reports: list[EpochReport] = []
        self.told: list[TrialResult] = []

    def ask(self) -> Trial | None:
        awaits_the_first = len(self.asked) == 1 and not self.told
        if not self.waiting or awaits_the_first:
            return None
        self.asked.append(self.waiting[0].number)
        return self.waiting.pop(0)

    def report(self, report: EpochReport) -> bool:
        self.reports.append(report)
        return report.trial != STOPPED

    def tell(self, result: TrialResult) -> None:
        self.told.append(result)

    def by_number(self) -> dict[int, TrialResult]:
        return {result.trial.number: result for result in self.told}


@pytest.fixture(scope="module")
def records(ray_of_two: None, tiny_search_context: SearchContext) -> dict[str, Record]:
    """The calls of every runner for the same trials."""
    made = {name: Record() for name in RUNNERS}
    for name, record in made.items():
        RUNNERS[name](RunnerConfig(), evaluate).run(record, tiny_search_context)
    return made


@pytest.fixture(params=list(RUNNERS))
def record(request: pytest.FixtureRequest, records: dict[str, Record]) -> Record:
    return records[request.param]


def test_each_trial_is_told_once_failed_ones_included(record: Record) -> None:
    assert record.asked == [trial.number for trial in TRIALS]
    assert sorted(result.trial.number for result in record.told) == record.asked
    told = record.by_number()
    assert [told[number].state for number in (0, 1, 2, 5, 6)] == ["complete"] * 5
    assert told[IMPOSSIBLE].state is TrialState.FAILED
    assert "Error: " in told[IMPOSSIBLE].error


def test_none_is_asked_again_after_a_result(record: Record) -> None:
    assert record.told[0].trial.number == 0
    assert len(record.asked) == len(TRIALS)


def test_every_report_is_passed_on_and_in_the_curve(record: Record) -> None:
    for number, result in record.by_number().items():
        assert result.curve == tuple(report for report in record.reports if report.trial == number)


def test_a_trial_that_is_stopped_is_told_with_its_last_report(
    record: Record, tiny_search_context: SearchContext
) -> None:
    stopped = record.by_number()[STOPPED]
    assert stopped.state is TrialState.STOPPED
    assert [report.epoch for report in stopped.curve] == [0]
    assert stopped.accuracy == stopped.curve[0].accuracy
    assert stopped.cost == tiny_search_context.space.cost(stopped.widths or {})


def test_local_and_ray_give_equal_results(records: dict[str, Record]) -> None:
    local, ray = (records[name].by_number() for name in ("local", "ray"))
    for number in local:
        for field in ("trial", "state", "accuracy", "cost", "widths", "error", "note", "checkpoint"):
            assert getattr(local[number], field) == getattr(ray[number], field)
    assert local[0].checkpoint


def test_intermediate_networks_come_back_with_their_weights(records: dict[str, Record]) -> None:
    local, ray = (records[name].by_number()[WITH_INTERMEDIATE].intermediate_networks for name in ("local", "ray"))
    assert len(local) == len(ray) > 0
    for ours, theirs in zip(local, ray, strict=True):
        for field in ("label", "state", "accuracy", "cost", "widths", "note", "checkpoint"):
            assert getattr(ours, field) == getattr(theirs, field)
        assert ours.checkpoint


@pytest.mark.parametrize("name", ["local", "simulated"])  # ray: tests/runners/ray/test_runner.py
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_of_the_study_and_an_interrupt_leave_the_run(
    name: str, tiny_search_context: SearchContext, error: BaseException
) -> None:
    class Broken(Record):
        def tell(self, result: TrialResult) -> None:
            if self.told:
                raise error
            super().tell(result)

    record = Broken()
    with pytest.raises(type(error)):
        RUNNERS[name](RunnerConfig(), evaluate).run(record, tiny_search_context)
    assert len(record.told) == 1
