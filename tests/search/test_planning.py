"""The forecasts of time, epochs and disk; `test_run` compares those of disk with what a search takes."""

import dataclasses
from pathlib import Path

import pytest
from safetensors.torch import save

from configs.schema import RunConfig
from runners.config import DataConfig, LatencyConfig, RunnerConfig, TrainConfig
from runners.evaluation.screening import screen_images
from runners.search_training import parse_search_training
from search.environment import Environment, prepare
from search.planning import (
    DiskPart,
    _trial_shares,
    dense_bytes,
    forecast_disk,
    forecast_epochs,
    forecast_time,
    mean_epochs,
    plan,
    screenable_methods,
    screened_trials,
    screening_pool_size,
)
from search.problem import Problem
from search.searchers.candidate_space import CandidateSpace
from search.storage.run_folder import DENSE


def environment_of(folder: Path, method: str, budget: str = "10%", trials: int = 12) -> Environment:
    return prepare(
        RunConfig(
            budget=(budget,),
            model="lenet5",
            data=DataConfig("digits"),
            method=method,
            trials=trials,
            out=str(folder / method),
            train=TrainConfig(device="cpu", precision="float32"),
            runner=RunnerConfig(name="local"),
        )
    )


def dense_trials(environment: Environment) -> float:
    return sum(_trial_shares(environment, CandidateSpace(environment.problem)))


def changed(environment: Environment, **changes: object) -> Environment:
    """The same with other settings."""
    config = dataclasses.replace(environment.config, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(environment, problem=Problem.resolve(config, environment.problem.space))


def test_narrow_training_costs_a_share_of_the_budget(tmp_path: Path) -> None:
    assert 0 < dense_trials(environment_of(tmp_path, "di")) < 0.16 * 12


@pytest.mark.parametrize("method", ["csgd", "kse"])
def test_a_method_that_trains_at_dense_cost_costs_its_trials_in_full(tmp_path: Path, method: str) -> None:
    environment = environment_of(tmp_path, method)
    baselines = 6
    assert dense_trials(environment) == pytest.approx(12 - baselines, abs=0.16 * baselines)


def test_a_mix_lies_between_because_slow_methods_are_proposed_less(tmp_path: Path) -> None:
    quick, mixed, slow = (dense_trials(environment_of(tmp_path, method)) for method in ("di", "di,aofp,csgd", "csgd"))
    warm_starts_of_wide_methods = 3  # those of csgd for all of their epoch, those of aofp for a part
    assert quick + 1 < mixed < quick + warm_starts_of_wide_methods + 2
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
    assert plan(paused, candidates).epochs == forecast_epochs(paused.config) == 34  # 10 * 1 + 8 * 1 + 8 * 2


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
    assert screened_trials(candidates, 20) == (20 - 9 - 5) / 2  # half of the trials after the initial design


def test_screening_pools_are_as_large_as_the_config_says_or_as_a_tenth_of_the_training_allows(tmp_path: Path) -> None:
    made = environment_of(tmp_path, "l2", trials=20)

    def size(**changes: object) -> int:
        environment = changed(made, **changes)
        return screening_pool_size(environment, CandidateSpace(environment.problem))

    assert (size(screen="3"), size(screen="none")) == (3, 1)
    train = dataclasses.replace(made.config.train, epochs=20)
    automatic = size(train=train, rungs="none")
    images = screen_images(len(made.data.calibration))
    pools = 2 * screened_trials(CandidateSpace(made.problem), 20)  # each from the dense network and from a trained one
    training = 2 * 20 * 20 * len(made.data.train)  # of the trials, and as much in the end
    assert automatic * pools * images <= 0.1 * training < (automatic + 1) * pools * images
    assert size(train=train, rungs="auto") < automatic  # trials that pause are trained less
    assert size(train=train, rungs="none", inherit=False) > automatic


def test_the_mean_of_searched_epochs_is_that_of_a_log_scale() -> None:
    assert mean_epochs((), 5) == 5
    searched = parse_search_training("lr,distill-weight,epochs", TrainConfig(epochs=4))
    assert mean_epochs(searched, 4) == pytest.approx(1.82, abs=0.01)  # 4 / ln 9


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return prepare(
        RunConfig(
            budget=("50%",),
            model="tiny_nets:residual",
            method="l2,aofp",
            trials=10,
            out=str(tmp_path / "run"),
            data=DataConfig("digits", image_size=8),
            train=TrainConfig(epochs=2, device="cpu", precision="float32"),
            runner=RunnerConfig(name="local"),
        )
    )


def parts_of(environment: Environment) -> dict[str, DiskPart]:
    return {part.what: part for part in forecast_disk(environment, CandidateSpace(environment.problem))}


def test_dense_weights_take_their_file_and_nothing_once_they_are_cached(environment: Environment) -> None:
    content = save({name: tensor.contiguous() for name, tensor in environment.net.state_dict().items()})
    assert dense_bytes(environment) == pytest.approx(len(content), rel=0.1)
    assert parts_of(environment)["dense weights"].size == dense_bytes(environment)
    file = environment.dense_file
    assert file is not None
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert parts_of(environment)["dense weights"] == DiskPart("dense weights", 0, f"cached: {file}")
    given = dataclasses.replace(changed(environment, weights="net.pt"), weighted=True)
    assert parts_of(given)["dense weights"] == DiskPart("dense weights", 0, "given: net.pt")


def test_the_run_folder_keeps_the_dense_weights_too(environment: Environment) -> None:
    assert parts_of(environment)["dense weights for --resume"].size == dense_bytes(environment)
    file = environment.folder / DENSE
    file.parent.mkdir(parents=True)
    file.touch()
    assert parts_of(environment)["dense weights for --resume"] == DiskPart(
        "dense weights for --resume", 0, f"there: {file}"
    )


def test_what_goes_to_a_server_takes_no_disk_here(environment: Environment) -> None:
    remote = parts_of(changed(environment, tracking_uri="http://host:5000", storage="postgresql://host/db"))
    assert (remote["MLflow"].size, remote["MLflow"].place) == (0, "http://host:5000")
    assert (remote["study"].size, remote["study"].place) == (0, "postgresql://host/db")


def test_checkpoints_grow_with_the_trials_and_stay_under_those_of_the_whole_budget(environment: Environment) -> None:
    few, many = (parts_of(changed(environment, trials=trials))["checkpoints of the trials"].size for trials in (10, 40))
    assert 3 * few < many < 5 * few
    assert many < 40 * dense_bytes(environment)


def extra_parts(environment: Environment) -> list[DiskPart]:
    return [part for part in parts_of(environment).values() if part.extra]


def test_only_some_methods_yield_intermediate_networks(environment: Environment) -> None:
    (extra,) = extra_parts(changed(environment, method="all"))
    assert extra.what == "intermediate networks of aofp"  # csgd, abfp and kse begin wide too, yet yield narrow networks
    assert 0 < extra.size < 10 * 4 * dense_bytes(environment)  # two per epoch
    (extra,) = extra_parts(changed(environment, method="di,l2", set=("di.gradual_epochs=2",)))
    assert extra.what == "intermediate networks of di"
    assert not extra_parts(changed(environment, method="di,l2"))
