"""What a search works with is made from its config before any work, and mistakes leave nothing behind."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_search import tiny_config

from configs.schema import RunConfig
from pruning.base import Goal
from runners.config import LatencyConfig
from runners.latency.engines import LatencyError
from runners.learning_curve import LearningCurve, write_curve
from runners.trial import Trial, TrialResult, TrialState
from search.environment import Environment, Plan, RunFolderError, alignment_of, prepare
from spaces.budget import Budget


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return prepare(tiny_config(tmp_path_factory.mktemp("runs") / "tiny"))


def test_an_environment_fits_its_data_and_writes_nothing(environment: Environment) -> None:
    data, problem = environment.data, environment.problem
    assert (environment.spec.num_classes, environment.spec.input_shape) == (data.num_classes, data.input_shape)
    assert problem.budgets == (Budget("flops", problem.space.dense_cost.flops // 2),)
    assert not environment.net.training
    assert (environment.runner, environment.workers, environment.device) == ("local", 1, torch.device("cpu"))
    assert not environment.folder.exists()


def test_without_weights_the_dense_network_is_cached_by_its_recipe(environment: Environment, tmp_path: Path) -> None:
    assert not environment.weighted
    assert environment.dense_file is not None
    other = prepare(tiny_config(tmp_path / "run", seed=1))
    assert other.dense_file not in (None, environment.dense_file)


def test_the_learning_curve_of_the_dense_network_is_known_once_it_is_trained(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path))
    assert environment.dense_curve is None
    curve = LearningCurve((0.4, 0.6), train=0.7, val_images=100)
    assert environment.dense_file is not None
    write_curve(curve, environment.dense_file.with_suffix(".json"))
    assert environment.dense_curve == curve
    assert dataclasses.replace(environment, weighted=True).dense_curve is None


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    with pytest.raises(RunFolderError, match="exists and is not empty; give a fresh one with --out"):
        prepare(tiny_config(tmp_path))
    with pytest.raises(RunFolderError):
        prepare(tiny_config(tmp_path / "kept"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("name", ["a?b", "a{b", "a}b", "a%20b"])
def test_a_folder_that_no_store_can_be_in_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("search.environment.load_data", None)
    with pytest.raises(RunFolderError, match=f"has '[{name[1]}]' in its path"):
        prepare(RunConfig(budget=("50%",), out=str(tmp_path / name / "run")))


def test_without_out_every_run_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("search.environment.time.strftime", lambda *_: "20260101-120000")
    config = dataclasses.replace(tiny_config(tmp_path), out="")
    folders = []
    for _ in range(3):
        folders.append(prepare(config).folder)
        folders[-1].mkdir(parents=True)
    name = "20260101-120000-tiny_nets_residual-digits"
    assert [str(folder) for folder in folders] == [f"runs/{name}", f"runs/{name}-2", f"runs/{name}-3"]


def test_an_unnamed_latency_device_is_that_of_the_training(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", budget=("50%", "8ms"), latency=LatencyConfig())
    assert prepare(config).config.latency.device == "cpu:1thread"
    with pytest.raises(LatencyError, match="--latency-device none measures nothing"):
        prepare(dataclasses.replace(config, latency=LatencyConfig("none")))


@pytest.mark.parametrize(
    ("latency", "budget", "alignment"),
    [
        (LatencyConfig("cpu:1thread", engine="onnxruntime"), "50%latency", 4),
        (LatencyConfig("http://board:9000"), "50%latency", 4),
        (LatencyConfig("cpu:1thread", engine="onnxruntime"), "50%", 1),
        (LatencyConfig("cpu:1thread"), "50%latency", 1),
    ],
)
def test_widths_are_aligned_where_onnxruntime_decides(latency: LatencyConfig, budget: str, alignment: int) -> None:
    assert alignment_of(RunConfig(budget=(budget,), latency=latency)) == alignment


def test_a_plan_counts_only_the_time_that_is_left(environment: Environment) -> None:
    trials = [Trial(number, "l2", Goal()) for number in range(2)]
    finished = [TrialResult(trial, TrialState.COMPLETE, 0.9, rungs=((3, 0.9),)) for trial in trials]
    plan = Plan(environment, seconds=100.0)
    assert plan.remaining(finished, 5).seconds == pytest.approx(60.0)
    assert plan.remaining([], 5) == plan
    with_rungs = Plan(environment, seconds=100.0, epochs=24.0).remaining(finished, 5)
    assert (with_rungs.seconds, with_rungs.epochs) == (pytest.approx(75.0), 18.0)
    assert Plan(environment).remaining(finished, 5).seconds is None


def test_the_reference_cost_is_along_the_axis_of_the_front(environment: Environment) -> None:
    problem = environment.problem
    assert Plan(environment).reference_cost == problem.space.dense_cost.flops
    config = dataclasses.replace(problem.config, objective="accuracy,latency")
    timed = dataclasses.replace(environment, problem=dataclasses.replace(problem, config=config))
    assert Plan(timed, dense_seconds=2e-3).reference_cost == 2e-3
    assert Plan(timed).reference_cost == 0.0
