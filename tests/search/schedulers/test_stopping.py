"""A time limit over closed-form trials, by a clock that the trials move."""

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from search.searchers.study_settings import StudySettings

from runners.base import Runner
from runners.config import RunnerConfig
from runners.simulated.runner import SaturatingAccuracy, SimulatedRunner
from runners.trial import EpochReport, TrialResult
from search.results.result import SearchResult
from search.schedulers.stopping import Deadline, TimeLimited, TimeLimitError, ending
from search.tuner import Study
from spaces.budget import Budget
from spaces.space import SearchSpace

if TYPE_CHECKING:
    from runners.evaluation.evaluate import SearchContext

    pass

LIMIT = 60.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Watched(TimeLimited):
    """Moves the clock to `over` at the report or end of a trial that is named."""

    def __init__(self, study: Study, clock: Clock, *, at_report: int = -1, at_end: int = -1) -> None:
        super().__init__(study, Deadline("1m", clock))
        self.clock, self.at_report, self.at_end = clock, at_report, at_end

    def report(self, report: EpochReport) -> bool:
        if report.trial == self.at_report:
            self.clock.now = LIMIT
        return super().report(report)

    def tell(self, result: TrialResult) -> None:
        super().tell(result)
        if result.trial.number == self.at_end:
            self.clock.now = LIMIT


@pytest.fixture
def study(chain_space: SearchSpace) -> Study:
    return Study(StudySettings(("l2",), trials=6), chain_space, [Budget("flops", 1_500_000)])


def search(trials: TimeLimited, space: SearchSpace) -> list[tuple[int, str]]:
    runner: Runner = SimulatedRunner(outcome=SaturatingAccuracy(space), epochs=3)
    search_context: Any = None  # a formula needs none
    runner.run(trials, search_context)
    return [(each.trial.number, str(each.state)) for each in trials.study.results]


def test_no_trial_begins_once_the_time_is_over(study: Study, chain_space: SearchSpace) -> None:
    trials = Watched(study, Clock(), at_end=2)
    assert search(trials, chain_space) == [(0, "complete"), (1, "complete"), (2, "complete")]
    assert trials.ended


def test_a_running_trial_is_stopped_at_its_next_report_and_its_network_counts(
    study: Study, chain_space: SearchSpace
) -> None:
    trials = Watched(study, Clock(), at_report=2)
    assert search(trials, chain_space) == [(0, "complete"), (1, "complete"), (2, "stopped")]
    assert len(study.results[2].curve) == 1
    assert study.results[2].accuracy is not None
    assert trials.ended


def test_the_first_trial_begins_and_ends_whatever_the_time(study: Study, chain_space: SearchSpace) -> None:
    clock = Clock()
    trials = Watched(study, clock)
    clock.now = 2 * LIMIT
    assert search(trials, chain_space) == [(0, "complete")]
    assert study.results[0].trial.baseline == "uniform"
    assert len(study.front) == 1
    assert trials.ended


def test_a_search_that_goes_on_from_finished_trials_owes_none(study: Study, chain_space: SearchSpace) -> None:
    search(Watched(study, Clock(), at_end=1), chain_space)
    clock = Clock()
    again = Watched(study, clock)
    clock.now = LIMIT
    assert len(search(again, chain_space)) == 2
    assert again.ended


def test_a_search_that_is_done_in_time_was_not_ended_by_the_limit(study: Study, chain_space: SearchSpace) -> None:
    clock = Clock()
    trials = Watched(study, clock, at_end=5)
    assert len(search(trials, chain_space)) == 6
    assert not trials.ended
    assert clock.now == LIMIT


def test_without_a_limit_the_time_is_never_over() -> None:
    clock = Clock()
    deadline = Deadline("", clock)
    clock.now = 1e12
    assert not deadline.over
    deadline.check("anywhere")


def test_a_limit_over_before_any_trial_is_an_error_that_says_where() -> None:
    clock = Clock()
    deadline = Deadline("1m", clock)
    deadline.check("here")
    clock.now = LIMIT
    with pytest.raises(TimeLimitError, match="the time limit of 1m was over after epoch 3, before any trial"):
        deadline.check("after epoch 3")


def test_workers_of_ray_stop_at_their_next_report(
    tiny_search_context: "SearchContext", ray_of_two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runners.evaluation.evaluate import evaluate
    from runners.ray.runner import RayRunner

    monkeypatch.setattr("runners.ray.runner.fitting_workers", lambda config: 2)
    search_context = dataclasses.replace(
        tiny_search_context, train=dataclasses.replace(tiny_search_context.train, epochs=40)
    )
    study = Study(StudySettings(("l2",), trials=50), search_context.space, [Budget.parse("50%")])
    trials = Watched(study, Clock(), at_end=0)
    RayRunner(RunnerConfig(name="ray"), evaluate).run(trials, search_context)
    states = [str(each.state) for each in study.results]
    assert states[0] == "complete"
    assert 2 <= len(states) <= 4
    assert states[-1] == "stopped"
    assert trials.ended


def test_the_ending_is_told_with_what_was_found(finished_search: SearchResult) -> None:
    config = {**finished_search.config, "time_limit": "30m"}
    limited = dataclasses.replace(finished_search, config=config, time_limited=True)
    assert ending(finished_search) == ""
    assert ending(limited) == "The time limit of 30m ended the search after 5 finished trials."
    none = dataclasses.replace(limited, results=finished_search.results[4:])
    assert ending(none).endswith("after 1 finished trial, none of which gave a network inside the budgets.")
    stopped = dataclasses.replace(limited, interrupted=True)
    assert ending(stopped) == "Stopped early: 5 finished trials, the front and the report are kept."
    assert SearchResult.from_json(limited.to_json()).time_limited
