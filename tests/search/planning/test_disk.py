"""The forecast of disk, part by part; `test_orchestrator` compares it with what a search takes."""

import dataclasses
from pathlib import Path

import pytest
from safetensors.torch import save

from configs.schema import RunConfig
from runners.config import DataConfig, RunnerConfig, TrainConfig
from search.planning.disk import DiskPart, dense_bytes, forecast_disk
from search.problem import Setup, dense_file, prepare
from search.storage.run_folder import DENSE


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
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


def parts_of(setup: Setup) -> dict[str, DiskPart]:
    return {part.what: part for part in forecast_disk(setup)}


def changed(setup: Setup, **changes: object) -> Setup:
    return dataclasses.replace(setup, config=dataclasses.replace(setup.config, **changes))  # type: ignore[arg-type]


def test_dense_weights_take_their_file_and_nothing_once_they_are_cached(setup: Setup) -> None:
    content = save({name: tensor.contiguous() for name, tensor in setup.net.state_dict().items()})
    assert dense_bytes(setup) == pytest.approx(len(content), rel=0.1)
    assert parts_of(setup)["dense weights"].size == dense_bytes(setup)
    file = dense_file(setup)
    assert file is not None
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert parts_of(setup)["dense weights"] == DiskPart("dense weights", 0, f"cached: {file}")
    given = dataclasses.replace(changed(setup, weights="net.pt"), weighted=True)
    assert parts_of(given)["dense weights"] == DiskPart("dense weights", 0, "given: net.pt")


def test_the_run_folder_keeps_the_dense_weights_too(setup: Setup) -> None:
    assert parts_of(setup)["dense weights for --resume"].size == dense_bytes(setup)
    file = setup.folder / DENSE
    file.parent.mkdir(parents=True)
    file.touch()
    assert parts_of(setup)["dense weights for --resume"] == DiskPart("dense weights for --resume", 0, f"there: {file}")


def test_what_goes_to_a_server_takes_no_disk_here(setup: Setup) -> None:
    remote = parts_of(changed(setup, tracking_uri="http://host:5000", storage="postgresql://host/db"))
    assert (remote["MLflow"].size, remote["MLflow"].place) == (0, "http://host:5000")
    assert (remote["study"].size, remote["study"].place) == (0, "postgresql://host/db")


def test_checkpoints_grow_with_the_trials_and_stay_under_those_of_the_whole_budget(setup: Setup) -> None:
    few, many = (parts_of(changed(setup, trials=trials))["checkpoints of the trials"].size for trials in (10, 40))
    assert 3 * few < many < 5 * few
    assert many < 40 * dense_bytes(setup)


def test_only_methods_that_yield_nets_on_the_way_may_pass_some(setup: Setup) -> None:
    (extra,) = [part for part in forecast_disk(changed(setup, method="all")) if part.extra]
    assert (
        extra.what == "nets that aofp may pass on the way"
    )  # csgd, abfp and kse begin wide too, yet yield narrow nets
    assert 0 < extra.size < 10 * 4 * dense_bytes(setup)  # two per epoch
    gradual = dataclasses.replace(changed(setup, method="di,l2"), fixed={"di": {"gradual_epochs": 2}})
    (extra,) = [part for part in forecast_disk(gradual) if part.extra]
    assert extra.what == "nets that di may pass on the way"
    assert not [part for part in forecast_disk(changed(setup, method="di,l2")) if part.extra]
