"""A search that was stopped at any moment goes on, and no finished trial is lost."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_search import tiny_config

from configs.loading import RUN_FILE, load
from configs.schema import RunConfig
from runners.config import TrainConfig
from runners.trial import TrialResult
from search import SearchResult, run
from search import load as load_net
from search.callbacks import Progress, SearchCallback
from search.environment import RunFolderError
from search.results.pareto import inside
from search.storage.run_folder import DENSE, OWNER, locked
from search.storage.study_storage import StudyError
from spaces.counting import count_cost

ROOT = Path(__file__).parents[3]
KILLS = 7


def environment(cache: Path) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": path, "SLIMFRONT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


KILLINGS = [
    pytest.param(KILLS, (1, 2, 4), id="rungs"),
    pytest.param(8 * KILLS, (), id="at once, often", marks=pytest.mark.slow),
    pytest.param(4 * KILLS, (1, 2, 4), id="rungs, often", marks=pytest.mark.slow),
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("kills", "rungs"), KILLINGS)
def test_killing_a_simulated_search_at_random_moments_loses_no_finished_trial(
    tmp_path: Path, kills: int, rungs: tuple[int, ...]
) -> None:
    arguments = [str(tmp_path / "run"), str(kills), "0", *map(str, rungs)]
    command = [sys.executable, str(ROOT / "tests" / "killed_search.py"), *arguments]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert len(outcome["starts"]) == kills + 1
    assert sum(trials > 0 for trials in outcome["starts"]) > kills // 2  # most were killed among their trials
    assert outcome["lost"] == outcome["changed"] == []
    assert outcome["weights"] is True
    assert outcome["numbers"] == list(range(len(outcome["numbers"])))
    assert outcome["keys"] == len(outcome["numbers"])  # none was tried twice
    assert outcome["files"] == len(outcome["numbers"])  # of no trial the weights of a shorter training are left
    if rungs:
        assert max(outcome["epochs"]) == 4


def resumed(folder: Path, **changes: Any) -> RunConfig:
    return dataclasses.replace(load(str(folder / RUN_FILE)), resume=str(folder), **changes)


class Stops(SearchCallback):
    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        if progress.finished == 3:
            raise KeyboardInterrupt


@pytest.fixture(scope="module", autouse=True)
def _without_programs() -> Iterator[None]:
    """Write no programs of exported nets: tests of the export look at those."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pruning.export._write_program", lambda net, input_shape, folder: (None, 0.0))
        yield


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchResult]:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, run(tiny_config(folder), [Stops()])


@pytest.fixture(scope="module")
def went_on(stopped: tuple[Path, SearchResult]) -> tuple[Path, SearchResult]:
    """The same, resumed without another flag, without the cache of dense networks."""
    folder, _ = stopped
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.orchestrator.trained_net", None)
        return folder, run(resumed(folder))


@pytest.fixture(scope="module")
def narrower(went_on: tuple[Path, SearchResult]) -> tuple[Path, SearchResult]:
    """The same, resumed with another budget and four more trials."""
    folder, _ = went_on
    return folder, run(resumed(folder, budget=("35%",), trials=9))


def test_a_stopped_search_goes_on_to_its_trials(
    stopped: tuple[Path, SearchResult], went_on: tuple[Path, SearchResult]
) -> None:
    before, after = stopped[1], went_on[1]
    assert (len(before.results), len(after.results)) == (3, 5)
    assert [(r.trial, r.accuracy) for r in after.results[:3]] == [(r.trial, r.accuracy) for r in before.results]
    assert after.dense.val_accuracy == before.dense.val_accuracy
    assert not after.interrupted


def test_a_new_budget_is_answered_from_the_old_trials_and_has_baselines(
    went_on: tuple[Path, SearchResult], narrower: tuple[Path, SearchResult]
) -> None:
    before, (folder, after) = went_on[1], narrower
    assert [r.trial for r in after.results[:5]] == [r.trial for r in before.results]
    assert len(after.results) == 9
    assert after.budgets[0].limit < before.budgets[0].limit
    assert all(after.budgets[0].allows(member.cost) for member in after.front if member.cost)
    old = inside(after.results[:5], after.budgets)
    for network in old:  # an old network inside the new budget is on the front, or beaten by one that is
        assert any(m.accuracy >= network.accuracy for m in after.front if m.cost.flops <= network.cost.flops)  # type: ignore
    baselines = [r.trial for r in after.results[5:] if r.trial.baseline]
    assert [(trial.method, trial.baseline) for trial in baselines] == [
        ("l2", "uniform"),
        ("di", "own"),
        ("di", "uniform"),
    ]
    assert {trial.goal.budgets[0].limit for trial in baselines} == {after.budgets[0].limit}
    assert load(str(folder / RUN_FILE)).budget == ("35%",)
    written = {path.name for path in (folder / "front").iterdir()}
    assert written == {f"trial-{member.stem}" for member in after.front}
    assert count_cost(load_net(folder, trust=True), (3, 8, 8)) == after.chosen.cost  # type: ignore[union-attr]


def test_mlflow_has_one_parent_run_with_every_trial_once(narrower: tuple[Path, SearchResult]) -> None:
    from mlflow.tracking import MlflowClient

    folder, result = narrower
    client = MlflowClient(tracking_uri=f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    runs = client.search_runs([client.get_experiment_by_name("slimfront").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == "FINISHED"
    assert parent.data.params["budget"] == "50%"
    assert parent.data.tags["now.budget"] == "35%"
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert sorted(children) == [f"trial {number:04d}" for number in range(9)]
    assert len(runs) == 10
    front = {f"trial {member.trial.number:04d}" for member in result.front}
    assert {name for name, child in children.items() if child.data.tags.get("on_front") == "true"} == front
    table = json.loads(Path(client.download_artifacts(parent.info.run_id, "front.json")).read_text())
    assert [row[0] for row in table["data"]] == [member.label for member in result.front]


def test_a_new_budget_has_its_baselines_even_without_a_trial_left(
    narrower: tuple[Path, SearchResult],
) -> None:
    folder, before = narrower
    after = run(resumed(folder, budget=("25%",)))
    assert len(after.results) == len(before.results) + 3
    assert all(result.trial.baseline for result in after.results[-3:])
    assert len(run(resumed(folder)).results) == len(after.results)


def test_what_a_killed_search_has_left_running_is_waited_for(tmp_path: Path) -> None:
    search = os.fork()
    if not search:
        with locked(tmp_path):
            if not os.fork():  # a process of the search, which has its lock too
                time.sleep(1.0)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(search, 0)
    assert (tmp_path / OWNER).read_text() == str(search)
    with locked(tmp_path):
        assert (tmp_path / OWNER).read_text() == str(os.getpid())


def finished(folder: Path, **changes: Any) -> RunConfig:
    run(tiny_config(folder, trials=3, **changes))
    return resumed(folder, trials=4)


def test_a_folder_whose_study_is_of_another_search_is_refused(tmp_path: Path) -> None:
    config = finished(tmp_path / "run", storage=f"sqlite:///{tmp_path / 'trials.db'}")
    folder = tmp_path / "run"
    dense = (folder / DENSE).read_bytes()
    with locked(folder), pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"):
        run(config)
    (folder / DENSE).write_bytes(dense[:-4] + b"\0\0\0\1")
    with pytest.raises(StudyError, match="other dense weights"):
        run(config)
    (folder / DENSE).write_bytes(dense)
    moved = folder.rename(tmp_path / "moved")
    (moved / "trials" / "0001.safetensors").unlink()
    result = run(dataclasses.replace(config, resume=str(moved)))  # its study has the name that the folder had
    assert [trial.trial.number for trial in result.results] == [0, 1, 2, 3]
    assert "weights are gone" in result.results[1].error
    assert all(member.trial.number != 1 for member in result.front)
    (tmp_path / "trials.db").unlink()
    with pytest.raises(StudyError, match="has no record of the search"):
        run(dataclasses.replace(config, resume=str(moved)))
    assert (moved / "result.json").exists()


def test_intermediate_networks_over_the_old_budget_are_on_no_front_under_a_new_one(tmp_path: Path) -> None:
    settings = ("theta=0.3", "scope=all", "search_share=0.5", "half_batches=2", "warm_up_batches=0")
    train = TrainConfig(epochs=4, batch_size=32, precision="float32", device="cpu")
    fixed = tuple(f"aofp.{setting}" for setting in settings)
    changes = {"budget": ("60%",), "method": "aofp", "set": fixed, "train": train, "trials": 5}
    first = run(tiny_config(tmp_path / "run", **changes))
    over = [network for trial in first.results for network in trial.intermediate_networks if not network.path]
    result = run(resumed(tmp_path / "run", budget=("100%",)))
    assert over
    assert all(member.path for member in result.front)
