"""A time limit over closed-form trials, by a clock that the trials move."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from made_up_search import MadeUpSearch, problem_of, search_of

from runners.base import AskTell
from runners.simulated.runner import SaturatingAccuracy, SimulatedRunner
from runners.trial import EpochReport, Trial, TrialResult
from search.problem import Problem
from search.reporting.statements import ending
from search.results.result import SearchResult
from search.schedulers.stopping import TimeLimit, TimeLimitError
from spaces.budget import Budget
from spaces.space import SearchSpace

LIMIT = 60.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedSearch(AskTell):
    """Moves the clock to the end of the time at a report of one trial, or after the end of one."""

    def __init__(self, problem: Problem, clock: Clock, *, at_report: int = -1, at_end: int = -1, url: str = "") -> None:
        self.search: MadeUpSearch = search_of(problem, stop=TimeLimit("1m", LIMIT, clock), url=url)
        self.clock, self.at_report, self.at_end = clock, at_report, at_end

    def ask(self) -> Trial | None:
        return self.search.ask()

    def report(self, report: EpochReport) -> bool:
        if report.trial == self.at_report:
            self.clock.now = LIMIT
        return self.search.report(report)

    def tell(self, result: TrialResult) -> None:
        self.search.tell(result)
        if result.trial.number == self.at_end:
            self.clock.now = LIMIT

    @property
    def results(self) -> tuple[TrialResult, ...]:
        return self.search.results

    @property
    def stopped(self) -> bool:
        return self.search.tuner.stopped


@pytest.fixture
def problem(chain_space: SearchSpace) -> Problem:
    return problem_of(chain_space, (Budget("flops", 1_500_000),), trials=6)


def run(trials: TimedSearch) -> list[tuple[int, str]]:
    """Run the search by formula; return the number and the state of every trial."""
    runner = SimulatedRunner(outcome=SaturatingAccuracy(trials.search.problem.space), epochs=3)
    search_context: Any = None  # a formula needs none
    runner.run(trials, search_context)
    return [(result.trial.number, str(result.state)) for result in trials.results]


def test_no_trial_begins_once_the_time_is_over(problem: Problem) -> None:
    trials = TimedSearch(problem, Clock(), at_end=2)
    assert run(trials) == [(0, "complete"), (1, "complete"), (2, "complete")]
    assert trials.stopped


def test_a_running_trial_is_stopped_at_its_next_report_and_its_network_counts(problem: Problem) -> None:
    trials = TimedSearch(problem, Clock(), at_report=2)
    assert run(trials) == [(0, "complete"), (1, "complete"), (2, "stopped")]
    assert len(trials.results[2].curve) == 1
    assert trials.results[2].accuracy is not None
    assert trials.stopped


def test_the_first_trial_begins_and_ends_whatever_the_time(problem: Problem) -> None:
    clock = Clock()
    trials = TimedSearch(problem, clock)
    clock.now = 2 * LIMIT
    assert run(trials) == [(0, "complete")]
    assert trials.results[0].trial.baseline == "uniform"
    assert len(trials.search.front) == 1
    assert trials.stopped


def test_a_search_that_goes_on_from_finished_trials_has_had_its_first_one(problem: Problem, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    run(TimedSearch(problem, Clock(), at_end=1, url=url))
    clock = Clock()
    again = TimedSearch(problem, clock, url=url)
    clock.now = LIMIT
    assert len(run(again)) == 2
    assert again.stopped


def test_a_search_that_is_done_in_time_was_not_ended_by_the_limit(problem: Problem) -> None:
    clock = Clock()
    trials = TimedSearch(problem, clock, at_end=5)
    assert len(run(trials)) == 6
    assert not trials.stopped
    assert clock.now == LIMIT


def test_without_a_limit_the_time_is_never_over() -> None:
    clock = Clock()
    limit = TimeLimit("", math.inf, clock)
    clock.now = 1e12
    assert not limit()
    limit.check("anywhere")


def test_a_limit_over_before_any_trial_is_an_error_that_says_where() -> None:
    clock = Clock()
    limit = TimeLimit("1m", LIMIT, clock)
    limit.check("here")
    clock.now = LIMIT
    with pytest.raises(TimeLimitError, match="the time limit of 1m was over after epoch 3, before any trial"):
        limit.check("after epoch 3")


def test_the_report_says_what_ended_a_search_and_what_was_found(finished_search: SearchResult) -> None:
    config = {**finished_search.config, "time_limit": "30m"}
    limited = dataclasses.replace(finished_search, config=config, time_limited=True)
    assert ending(finished_search) == ""
    assert ending(limited) == "The time limit of 30m ended the search after 5 finished trials."
    none = dataclasses.replace(limited, results=finished_search.results[4:])
    assert ending(none).endswith("after 1 finished trial, none of which gave a network inside the budgets.")
    stopped = dataclasses.replace(limited, interrupted=True)
    assert ending(stopped) == "Stopped early: 5 finished trials, the front and the report are kept."
    assert SearchResult.from_json(limited.to_json()).time_limited
