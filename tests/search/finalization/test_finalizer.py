"""Finalization of a search whose only network is the dense one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_search import tiny_config

from pruning import checkpoint
from pruning.base import Goal
from runners.trial import Trial, TrialResult, TrialState
from search.callbacks import SearchCallback
from search.environment import Environment, prepare
from search.finalization.finalizer import ConfirmationError, Ending, Finalizer
from search.finalization.retraining import Retrainer
from search.results.result import SearchResult

pytestmark = pytest.mark.usefixtures("without_programs")
PATH = "trials/0000.safetensors"


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    made = prepare(tiny_config(tmp_path / "run", budget=("100%",)))
    (made.folder / "trials").mkdir(parents=True)
    checkpoint.save(made.folder / PATH, made.net, made.spec, made.problem.space.full)
    return made


@pytest.fixture
def trial(environment: Environment) -> TrialResult:
    space = environment.problem.space
    uniform = Trial(0, "l2", Goal(space.full), baseline="uniform")
    return TrialResult(uniform, TrialState.COMPLETE, 0.5, space.dense_cost, space.full, path=PATH)


def finalized(environment: Environment, trial: TrialResult, ending: Ending) -> SearchResult:
    context: Any = None  # nothing is trained again
    retrainer = Retrainer(environment, context, SearchCallback())
    return Finalizer(environment, None, environment.net, 0.5, retrainer, SearchCallback())([trial], ending)


def test_the_front_is_read_on_test_and_written(environment: Environment, trial: TrialResult) -> None:
    result = finalized(environment, trial, Ending(1.0, time_limited=True))
    assert result.chosen is not None
    assert result.chosen.test_accuracy == result.dense.test_accuracy  # the same network
    assert result.time_limited
    assert SearchResult.from_json((environment.folder / result.paths["result"]).read_text()) == result
    metrics = json.loads((environment.folder / result.paths["chosen"] / "metrics.json").read_text())
    assert (metrics["test_accuracy"], metrics["flops"]) == (result.dense.test_accuracy, result.dense.cost.flops)
    assert metrics["confirmation"] is None


def test_the_int8_file_of_the_front_is_written_beside_the_float_files(
    environment: Environment, trial: TrialResult
) -> None:
    pytest.importorskip("onnxruntime")
    problem = environment.problem
    problem = dataclasses.replace(problem, config=dataclasses.replace(problem.config, quantize="int8"))
    environment = dataclasses.replace(environment, problem=problem)
    result = finalized(environment, trial, Ending(1.0))
    folder = environment.folder / result.paths["chosen"]
    assert result.int8["0"].bytes == (folder / "model.int8.onnx").stat().st_size
    assert json.loads((folder / "metrics.json").read_text())["int8"] == dataclasses.asdict(result.int8["0"])
    assert SearchResult.from_json((environment.folder / result.paths["result"]).read_text()) == result


def test_a_stopped_search_is_written_without_test_accuracies(environment: Environment, trial: TrialResult) -> None:
    result = finalized(environment, trial, Ending(1.0, interrupted=True))
    assert result.chosen is not None
    assert (result.chosen.test_accuracy, result.dense.test_accuracy) == (None, None)
    assert (environment.folder / result.paths["chosen"] / "model.safetensors").is_file()


def test_a_file_of_another_network_is_an_error(environment: Environment, trial: TrialResult) -> None:
    cost = dataclasses.replace(environment.problem.space.dense_cost, flops=1)
    with pytest.raises(ConfirmationError, match="its trial reported .*; the file was changed"):
        finalized(environment, dataclasses.replace(trial, cost=cost), Ending(1.0))
