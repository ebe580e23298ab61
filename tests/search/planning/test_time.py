"""The forecast of a search's time knows the methods that train the dense network."""

import dataclasses
from pathlib import Path

import pytest

from configs.schema import RunConfig
from runners.config import LatencyConfig, RunnerConfig, TrainConfig
from runners.search_training import parse_search_training
from search.environment import Environment, prepare
from search.planning.time import (
    _dense_trials,
    forecast_epochs,
    forecast_time,
    mean_epochs,
    plan,
    screenable_methods,
    screened_trials,
)
from search.problem import Problem
from search.searchers.candidate_space import CandidateSpace


def environment_of(folder: Path, method: str, budget: str = "10%", trials: int = 12) -> Environment:
    return prepare(
        RunConfig(
            budget=(budget,),
            model="lenet5",
            method=method,
            trials=trials,
            out=str(folder / method),
            train=TrainConfig(device="cpu", precision="float32"),
            runner=RunnerConfig(name="local"),
        )
    )


def dense_trials(environment: Environment) -> float:
    return _dense_trials(environment, CandidateSpace(environment.problem))


def changed(environment: Environment, **changes: object) -> Environment:
    """The same with other settings."""
    config = dataclasses.replace(environment.config, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(environment, problem=Problem.resolve(config, environment.problem.space))


def test_narrow_training_costs_a_share_of_the_budget(tmp_path: Path) -> None:
    assert 0 < dense_trials(environment_of(tmp_path, "di")) < 0.16 * 12


@pytest.mark.parametrize("method", ["csgd", "kse"])
def test_a_method_that_trains_at_dense_cost_costs_its_trials_in_full(tmp_path: Path, method: str) -> None:
    environment = environment_of(tmp_path, method)
    baselines = 4
    assert dense_trials(environment) == pytest.approx(12 - baselines, abs=0.16 * baselines)


def test_a_mix_lies_between_because_slow_methods_are_proposed_less(tmp_path: Path) -> None:
    quick, mixed, slow = (dense_trials(environment_of(tmp_path, method)) for method in ("di", "auto", "csgd"))
    warm_starts_of_wide_methods = 3
    assert quick + 2 < mixed < quick + warm_starts_of_wide_methods + 2
    assert mixed < slow


def test_the_plan_has_the_time_and_where_trials_pause_the_epochs(tmp_path: Path) -> None:
    environment = environment_of(tmp_path, "auto")
    candidates = CandidateSpace(environment.problem)
    made = plan(environment, candidates, dense_seconds=0.25)
    assert made.seconds is not None
    assert made.seconds > 0
    assert (made.environment, made.epochs, made.dense_seconds) == (environment, 0, 0.25)
    train = dataclasses.replace(environment.config.train, epochs=4)
    paused = changed(environment, train=train, rungs="1,2", trials=10)
    assert plan(paused, candidates).epochs == forecast_epochs(paused.config) == 23  # 10 * 1 + 5 * 1 + 4 * 2


def test_timing_the_front_takes_its_time_and_more_where_latency_counts(tmp_path: Path) -> None:
    made = environment_of(tmp_path, "di")
    front, counting, untimed = (
        forecast_time(changed(made, **changes), CandidateSpace(made.problem)).around
        for changes in ({}, {"objective": "accuracy,latency"}, {"latency": LatencyConfig("none")})
    )
    assert untimed < front < counting


def test_only_proposals_with_methods_that_can_be_compared_are_screened(tmp_path: Path) -> None:
    candidates = CandidateSpace(environment_of(tmp_path, "l2,csgd", trials=20).problem)
    assert screenable_methods(candidates) == ["l2"]
    assert screened_trials(candidates, 20) == (20 - 6 - 3) / 2  # half of the trials after the initial design


def test_the_mean_of_searched_epochs_is_that_of_a_log_scale() -> None:
    assert mean_epochs((), 5) == 5
    searched = parse_search_training("lr,distill-weight,epochs", TrainConfig(epochs=4))
    assert mean_epochs(searched, 4) == pytest.approx(1.82, abs=0.01)  # 4 / ln 9
