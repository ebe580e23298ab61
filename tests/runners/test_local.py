"""The loop of ask, evaluate, report and tell."""

import pytest

from pruning.base import Goal
from runners.base import Evaluation
from runners.config import RunnerConfig
from runners.evaluation.context import SearchContext
from runners.local import LocalRunner
from runners.trial import EpochReport, Trial, TrialResult, TrialState


class Desk:
    def __init__(self, count: int) -> None:
        self.trials = [Trial(number, "l2", Goal()) for number in range(count)]
        self.events: list[str] = []

    def ask(self) -> Trial | None:
        return self.trials.pop(0) if self.trials else None

    def report(self, report: EpochReport) -> bool:
        self.events.append(f"report {report.trial}.{report.epoch}")
        return True

    def tell(self, result: TrialResult) -> None:
        self.events.append(f"tell {result.trial.number}")


def test_a_trial_is_told_before_the_next_is_asked_for(tiny_search_context: SearchContext) -> None:
    def two_epochs(trial: Trial, search_context: SearchContext) -> Evaluation:
        yield EpochReport(trial.number, 0, 0.1, 0.0)
        yield EpochReport(trial.number, 1, 0.2, 0.0)
        return TrialResult(trial, TrialState.COMPLETE)

    desk = Desk(2)
    LocalRunner(RunnerConfig(), two_epochs).run(desk, tiny_search_context)
    assert desk.events == ["report 0.0", "report 0.1", "tell 0", "report 1.0", "report 1.1", "tell 1"]


def test_an_interrupt_closes_the_running_trial(tiny_search_context: SearchContext) -> None:
    closed = []

    def endless(trial: Trial, search_context: SearchContext) -> Evaluation:
        try:
            while True:
                yield EpochReport(trial.number, 0, 0.1, 0.0)
        finally:
            closed.append(trial.number)

    class Interrupted(Desk):
        def report(self, report: EpochReport) -> bool:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalRunner(RunnerConfig(), endless).run(Interrupted(2), tiny_search_context)
    assert closed == [0]
