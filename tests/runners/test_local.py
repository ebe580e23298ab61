"""The loop of ask, evaluate, report and tell."""

import pytest

from pruning.base import Goal
from runners.base import Evaluation, available_cpus, fitting_workers, pick_runner, workers
from runners.config import RunnerConfig
from runners.evaluation.evaluate import SearchContext
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
    LocalRunner(evaluator=two_epochs).run(desk, tiny_search_context)
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
        LocalRunner(evaluator=endless).run(Interrupted(2), tiny_search_context)
    assert closed == [0]


@pytest.mark.parametrize(
    ("config", "cpus", "runner", "at_once"),
    [
        (RunnerConfig(), 1, "local", 1),
        (RunnerConfig(), 4, "ray", 4),
        (RunnerConfig(cpus_per_trial=2), 4, "ray", 2),
        (RunnerConfig(cpus_per_trial=4), 6, "local", 1),
        (RunnerConfig(name="local"), 4, "local", 1),
        (RunnerConfig(name="ray", cpus_per_trial=2), 1, "ray", 1),
    ],
)
def test_auto_takes_ray_where_more_than_one_worker_fits(
    config: RunnerConfig, cpus: int, runner: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.base.available_cpus", lambda: cpus)
    assert pick_runner(config, "cpu") == runner
    assert workers(config, "cpu") == at_once


def test_a_cluster_is_for_ray() -> None:
    assert pick_runner(RunnerConfig(ray_address="10.0.0.1:6379"), "cpu") == "ray"


def test_workers_on_cuda_take_a_whole_device_each_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runners.base.available_cpus", lambda: 16)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert fitting_workers(RunnerConfig(), "cuda") == 1
    assert fitting_workers(RunnerConfig(gpus_per_trial=0.25), "cuda") == 4


def test_there_is_a_core() -> None:
    assert available_cpus() >= 1
