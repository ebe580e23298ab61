"""The forecast of disk, part by part; `test_orchestrator` compares it with what a search takes."""

import dataclasses
from pathlib import Path

import pytest
from safetensors.torch import save

from configs.schema import RunConfig
from runners.config import DataConfig, RunnerConfig, TrainConfig
from search.environment import Environment, prepare
from search.planning.disk import DiskPart, dense_bytes, forecast_disk
from search.problem import Problem
from search.searchers.candidate_space import CandidateSpace
from search.storage.run_folder import DENSE


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
            data=DataConfig(image_size=8),
            train=TrainConfig(epochs=2, device="cpu", precision="float32"),
            runner=RunnerConfig(name="local"),
        )
    )


def parts_of(environment: Environment) -> dict[str, DiskPart]:
    return {part.what: part for part in forecast_disk(environment, CandidateSpace(environment.problem))}


def changed(environment: Environment, **changes: object) -> Environment:
    """The same with other settings."""
    config = dataclasses.replace(environment.config, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(environment, problem=Problem.resolve(config, environment.problem.space))


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
