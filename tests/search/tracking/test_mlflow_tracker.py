import dataclasses
import json
import logging
import math
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruning.base import Goal
from runners.trial import Confirmation, EpochReport, Trial, TrialResult, TrialState
from search.results.result import DenseResult, SearchResult
from search.tracking import mlflow_tracker as tracking
from search.tracking.mlflow_tracker import MlflowTracker, TrackingError, flatten
from search.tracking.mlflow_tracker import _client as opened_for_good  # bound before the stores of tests become copies
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.widths import Widths

BUDGET = Budget("flops", 1000)
WIDTHS = Widths({"conv1": 4, "conv2": 8})
DENSE = Cost(2000, 90)


@dataclasses.dataclass(frozen=True)
class Inner:
    epochs: int = 2


@dataclasses.dataclass(frozen=True)
class Config:
    budget: tuple[str, ...] = ("50%", "1kparams")
    model: str = "lenet5"
    weights: str = ""
    train: Inner = dataclasses.field(default_factory=Inner)


def complete(number: int = 0, **changes: Any) -> TrialResult:
    goal = Goal(WIDTHS, (Budget("flops", 500),))
    trial = Trial(number, "di", goal, {"ridge": 0.1, "way": "greedy"}, seed=7)
    curve = (EpochReport(number, 0, 0.3, 0.5), EpochReport(number, 1, 0.6, 1.5))
    result = TrialResult(trial, TrialState.COMPLETE, 0.6, Cost(480, 40), WIDTHS, curve, seconds=2.0)
    return dataclasses.replace(result, **changes)


def failed(number: int = 1) -> TrialResult:
    trial = Trial(number, "l2", Goal(None, (BUDGET,)), baseline="uniform")
    curve = (EpochReport(number, 0, math.nan, 0.5),)
    return TrialResult(trial, TrialState.FAILED, curve=curve, error="out of memory", note={"loss": math.nan})


def search_result(*results: TrialResult, **changes: Any) -> SearchResult:
    return dataclasses.replace(SearchResult({}, (BUDGET,), DenseResult(0.9, 0.88, DENSE), results), **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one finished search in its store."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "front.png").write_bytes(b"png")
    (folder / "config.yaml").write_text("model: lenet5\n")
    (folder / "front" / "trial-0000").mkdir(parents=True)
    (folder / "front" / "trial-0000" / "widths.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_RUN_ID", "0123456789abcdef0123456789abcdef")  # somebody else's run
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = MlflowTracker(folder, "", Config())
        tracker.start()
        tracker.dense(0.9, DENSE, (BUDGET,))
        intermediate_networks = tuple(
            complete(intermediate_index=i, accuracy=0.6 + i / 10, cost=Cost(480 + i, 41)) for i in (1, 2)
        )
        tracker.trial(complete(intermediate_networks=intermediate_networks), 0.25, 0.6, 1)
        tracker.trial(failed(), 0.25, 0.6, 1)
        paths = {"picture": "front.png", "missing": "no.html", "networks": "front", "chosen": "front/trial-0000"}
        intermediate_networks = (
            intermediate_networks[0],
            dataclasses.replace(intermediate_networks[1], test_accuracy=0.75),
        )
        again, control = (Confirmation((1, 2), each, (480, 480), 100) for each in ((0.5, 0.6), (0.3, 0.3)))
        intermediate_networks = (
            intermediate_networks[0],
            dataclasses.replace(intermediate_networks[1], confirmation=again),
        )
        member = complete(test_accuracy=0.55, intermediate_networks=intermediate_networks)
        rival = dataclasses.replace(complete(5), confirmation=control)
        tracker.finish(search_result(member, failed(), paths=paths, control=rival))
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


@pytest.fixture(scope="module")
def runs(client: MlflowClient) -> dict[str, Run]:
    experiment = client.get_experiment_by_name("slimfront")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def artifacts(client: MlflowClient, run: Run, path: str | None = None) -> set[str]:
    return {each.path for each in client.list_artifacts(run.info.run_id, path)}


def history(client: MlflowClient, run: Run, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def test_every_trial_is_a_child_of_the_search(runs: dict[str, Run]) -> None:
    assert set(runs) == {"search", "trial 0000", "trial 0001"}
    parent = runs["search"].info.run_id
    assert {runs[name].data.tags["mlflow.parentRunId"] for name in ("trial 0000", "trial 0001")} == {parent}
    assert runs["search"].info.status == "FINISHED"


def test_the_parent_has_config_budgets_and_the_dense_network(runs: dict[str, Run]) -> None:
    data = runs["search"].data
    assert data.params == {
        "budget": "50%, 1kparams",
        "model": "lenet5",
        "weights": "",
        "train.epochs": "2",
        "budget.flops": "1000",
    }
    assert (data.metrics["dense_accuracy"], data.metrics["dense_flops"], data.metrics["dense_params"]) == (
        0.9,
        2000,
        90,
    )


def test_the_parent_shows_the_search_as_it_grows(client: MlflowClient, runs: dict[str, Run]) -> None:
    assert history(client, runs["search"], "hypervolume") == [(1, 0.25), (2, 0.25)]
    assert history(client, runs["search"], "best_accuracy") == [(1, 0.6), (2, 0.6)]
    assert history(client, runs["search"], "front_size") == [(1, 1.0), (2, 1.0)]


def test_the_parent_has_the_difference_to_uniform_widths(runs: dict[str, Run]) -> None:
    metrics = runs["search"].data.metrics
    assert metrics["over_uniform_mean"] == pytest.approx(0.25)
    assert metrics["over_uniform_standard_error"] == pytest.approx(0.05)
    assert metrics["over_uniform_noise"] > 0.05


def test_a_child_has_its_candidate_and_what_came_of_it(client: MlflowClient, runs: dict[str, Run]) -> None:
    child = runs["trial 0000"]
    assert child.data.params == {
        "method": "di",
        "arm": "searched",
        "seed": "7",
        "allocation": "search",
        "budget_fraction": "0.5",
        "di.ridge": "0.1",
        "di.way": "greedy",
    }
    figures = {name: child.data.metrics[name] for name in ("accuracy", "flops", "params", "seconds", "test_accuracy")}
    assert figures == {"accuracy": 0.6, "flops": 480, "params": 40, "seconds": 2.0, "test_accuracy": 0.55}
    assert history(client, child, "val_accuracy") == [(0, 0.3), (1, 0.6)]
    assert (child.info.status, child.data.tags["state"], child.data.tags["front"]) == ("FINISHED", "complete", "true")
    assert child.info.end_time - child.info.start_time == pytest.approx(2000, abs=1)


def test_widths_are_a_json_artifact(client: MlflowClient, runs: dict[str, Run], tmp_path: Path) -> None:
    path = client.download_artifacts(runs["trial 0000"].info.run_id, "widths.json", str(tmp_path))
    assert Widths(json.loads(Path(path).read_text())) == WIDTHS


def test_networks_passed_on_the_way_are_steps_of_the_child(
    client: MlflowClient, runs: dict[str, Run], tmp_path: Path
) -> None:
    child = runs["trial 0000"]
    assert history(client, child, "passed_accuracy") == [(1, 0.7), (2, 0.8)]
    assert history(client, child, "passed_flops") == [(1, 481.0), (2, 482.0)]
    assert history(client, child, "passed_test_accuracy") == [(2, 0.75)]
    figures = {name: history(client, child, f"passed_test_{name}") for name in ("mean", "std", "seeds")}
    assert figures == {"mean": [(2, 0.55)], "std": [(2, pytest.approx(0.1 / 2**0.5))], "seeds": [(2, 2.0)]}
    path = client.download_artifacts(child.info.run_id, "passed.json", str(tmp_path))
    assert json.loads(Path(path).read_text()) == {"0.1": dict(WIDTHS), "0.2": dict(WIDTHS)}


def test_a_failed_trial_is_a_failed_run_with_its_reason(runs: dict[str, Run]) -> None:
    child = runs["trial 0001"]
    assert (child.info.status, child.data.tags["state"]) == ("FAILED", "failed")
    assert child.data.tags["failure_reason"] == "out of memory"
    assert child.data.params["arm"] == "uniform"
    assert set(child.data.metrics) == {"seconds"}


def test_the_front_is_a_table_and_the_report_an_artifact(
    client: MlflowClient, runs: dict[str, Run], tmp_path: Path
) -> None:
    parent = runs["search"]
    assert artifacts(client, parent) == {"front.json", "front.png", "config.yaml", "chosen"}
    assert artifacts(client, parent, "chosen") == {"chosen/widths.json"}
    assert json.loads(parent.data.tags["mlflow.loggedArtifacts"]) == [{"path": "front.json", "type": "table"}]
    table = json.loads(Path(client.download_artifacts(parent.info.run_id, "front.json", str(tmp_path))).read_text())
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    assert row["flops"] == 480
    assert (row["percent_of_dense"], row["val_accuracy"], row["test_accuracy"]) == (24.0, 0.6, 0.55)


def test_artifacts_lie_in_the_run_folder(folder: Path, runs: dict[str, Run]) -> None:
    assert runs["search"].info.artifact_uri.startswith((folder / "mlartifacts").as_uri())


def test_another_search_joins_the_experiment_and_an_aborted_one_is_failed(folder: Path, client: MlflowClient) -> None:
    tracker = MlflowTracker(folder, f"sqlite:///{folder / 'mlflow.db'}", {"model": "other"})
    tracker.start()
    tracker.dense(0.9, DENSE, (BUDGET,))
    tracker.abort()
    (experiment,) = [each for each in client.search_experiments() if each.name == "slimfront"]
    (run,) = client.search_runs([experiment.experiment_id], "params.model = 'other'")
    assert run.info.status == "FAILED"


def test_a_store_that_cannot_be_opened_is_a_clear_error(tmp_path: Path) -> None:
    tracker = MlflowTracker(tmp_path, "nonsense://server", {})
    tracker.start()
    with pytest.raises(TrackingError, match=r"cannot record to 'nonsense://server' .* --tracking-uri") as caught:
        tracker.dense(0.9, DENSE, ())
    assert "\n" not in str(caught.value)
    tracker.abort()


class BrokenRecords:
    """A store that opens and then takes nothing."""

    parent = "parent"
    tried = 0

    def __getattr__(self, name: str) -> Callable[..., None]:
        def broken(*_: Any) -> None:
            BrokenRecords.tried += 1
            raise MlflowException("server is gone")

        return broken


def test_a_server_that_dies_is_warned_of_once_and_loses_no_search(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(tracking._Records, "open", lambda *_: BrokenRecords())
    tracker = MlflowTracker(tmp_path, "http://server:5000", {})
    tracker.start()
    with caplog.at_level(logging.WARNING):
        tracker.dense(0.9, DENSE, (BUDGET,))
        for number in range(5):
            tracker.trial(complete(number), 0.1, 0.5, 1)
        tracker.finish(search_result(complete()))
    assert [record.message for record in caplog.records] == [
        "MLflow at http://server:5000 did not take a record (server is gone); the search goes on"
    ]
    assert BrokenRecords.tried == tracking.MAX_FAILURES


def test_logging_a_trial_does_not_wait_for_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class SlowRecords(BrokenRecords):
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_, **__: time.sleep(0.2)

    monkeypatch.setattr(tracking._Records, "open", lambda *_: SlowRecords())
    tracker = MlflowTracker(tmp_path, "", {})
    tracker.start()
    tracker.dense(0.9, DENSE, (BUDGET,))
    start = time.perf_counter()
    tracker.trial(complete(), 0.1, None, 1)
    assert time.perf_counter() - start < 0.1
    tracker.finish(search_result(complete()))
    assert time.perf_counter() - start > 0.2


def test_the_command_opens_mlflow_on_this_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "my run"
    command = MlflowTracker(folder, "", {}).command()
    assert shlex.split(command) == ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert MlflowTracker(folder, "", {}).command() == "http://server:5000"
    assert MlflowTracker(folder, "http://other", {}).uri == "http://other"


def test_flatten_joins_names_with_dots() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2]}) == {"a.b.c": "1", "d": "1, 2"}


def test_a_store_that_a_kill_left_half_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.tracking

    made = []

    class Killed(mlflow.tracking.MlflowClient):
        def search_experiments(self, *arguments: Any, **settings: Any) -> Any:
            super().search_experiments(*arguments, **settings)
            made.append(sorted(each.name for each in tmp_path.iterdir()))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.tracking, "MlflowClient", Killed)
        with pytest.raises(KeyboardInterrupt):
            opened_for_good(f"sqlite:///{tmp_path / 'mlflow.db'}")
    ((name,),) = made
    assert name.startswith(".mlflow.db.")
    (tmp_path / name).write_bytes(b"half made")
    assert opened_for_good(f"sqlite:///{tmp_path / 'mlflow.db'}").search_experiments()
    assert [each.name for each in tmp_path.iterdir()] == ["mlflow.db"]
