import base64
import dataclasses
import json
import logging
import math
import os
import platform
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from configs.schema import RunConfig
from pruning.base import Goal
from runners.config import DataConfig
from runners.learning_curve import LearningCurve
from runners.trial import Confirmation, EpochReport, Trial, TrialResult, TrialState
from search.callbacks import Progress
from search.environment import Plan
from search.results.pareto import ParetoFront
from search.results.result import DenseResult, SearchResult
from search.tracking.journal import Heading, Record
from search.tracking.mlflow_tracker import MlflowTracker, TrackingError
from search.tracking.recorder import Recorder
from search.tracking.runs import SearchRuns
from search.tracking.store import page_address, rebase_artifacts
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.widths import Widths

BUDGET = Budget("flops", 1000)
NAME = "lenet5 digits 50% 1kparams"  # of the parent run, where none is given
VIEW = "mlflow.sharedViewState.front-of-lenet5-on-digits"  # tag of the experiment
WIDTHS = Widths({"conv1": 4, "conv2": 8})
DENSE = Cost(2000, 90)
DATA: Any = SimpleNamespace(
    name="digits",
    fingerprint="0123456789abcdef" * 4,
    input_shape=(3, 8, 8),
    num_classes=10,
    train=range(100),
    val=range(20),
    test=range(30),
)


def config(uri: str = "", **changes: Any) -> RunConfig:
    return RunConfig(budget=("50%", "1kparams"), data=DataConfig("digits"), tracking_uri=uri, **changes)


def begin(tracker: MlflowTracker, *finished: TrialResult) -> None:
    """Start a search whose dense network has 90% on validation."""
    groups = [SimpleNamespace(name="conv1"), SimpleNamespace(name="conv2")]
    space = SimpleNamespace(dense_cost=DENSE, full={"conv1": 8, "conv2": 8}, variable=groups)
    problem: Any = SimpleNamespace(space=space, budgets=(BUDGET,), targets=(), axis="flops")
    curve, task = LearningCurve((0.7, 0.9), 0.95, 100), SimpleNamespace(score_name="accuracy")
    environment: Any = SimpleNamespace(problem=problem, data=DATA, dense_curve=curve, task=task)
    tracker.on_search_start(Plan(environment))
    tracker.on_dense_evaluated(0.9, problem, finished)


def end_trial(tracker: MlflowTracker, result: TrialResult, *front: TrialResult) -> None:
    tracker.on_trial_end(result, Progress(1, 2, ParetoFront(front)))


def finish(tracker: MlflowTracker, result: SearchResult) -> None:
    tracker.on_search_end(result, Path(), "")


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
        tracker = MlflowTracker(folder, config(model="lenet5"))
        begin(tracker)
        networks = tuple(
            complete(intermediate_index=index, accuracy=0.6 + index / 10, cost=Cost(480 + index, 41))
            for index in (1, 2)
        )
        end_trial(tracker, complete(intermediate_networks=networks), complete())
        end_trial(tracker, failed(), complete())
        paths = {"picture": "front.png", "missing": "no.html", "networks": "front", "chosen": "front/trial-0000"}
        retrained, retrained_baseline = (
            Confirmation((1, 2), accuracies, (480, 480), 100) for accuracies in ((0.5, 0.6), (0.3, 0.3))
        )
        networks = (networks[0], dataclasses.replace(networks[1], test_accuracy=0.75, confirmation=retrained))
        member = complete(test_accuracy=0.55, intermediate_networks=networks)
        baseline = dataclasses.replace(complete(5), confirmation=retrained_baseline)
        finish(tracker, search_result(member, failed(), paths=paths, retrained_baseline=baseline))
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


@pytest.fixture(scope="module")
def runs(client: MlflowClient) -> dict[str, Run]:
    experiment = client.get_experiment_by_name("slimfront")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def artifacts(client: MlflowClient, run: Run, path: str | None = None) -> set[str]:
    return {artifact.path for artifact in client.list_artifacts(run.info.run_id, path)}


def history(client: MlflowClient, run: Run, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def test_every_trial_is_a_child_of_the_search(runs: dict[str, Run]) -> None:
    assert set(runs) == {NAME, "trial 0000", "trial 0001"}
    parent = runs[NAME].info.run_id
    assert {runs[name].data.tags["mlflow.parentRunId"] for name in ("trial 0000", "trial 0001")} == {parent}
    assert runs[NAME].info.status == "FINISHED"


def test_the_parent_has_config_budgets_and_the_dense_network(runs: dict[str, Run]) -> None:
    data = runs[NAME].data
    expected = {
        "budget": "50%, 1kparams",
        "model": "lenet5",
        "weights": "",
        "train.epochs": str(config().train.epochs),
        "budget.flops": "1000",
    }
    assert {name: data.params.get(name) for name in expected} == expected
    assert (data.metrics["dense_accuracy"], data.metrics["dense_flops"], data.metrics["dense_params"]) == (
        0.9,
        2000,
        90,
    )


def test_the_parent_names_its_images_and_where_it_ran(client: MlflowClient, runs: dict[str, Run]) -> None:
    (given,) = runs[NAME].inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("digits", DATA.fingerprint[:36])
    assert json.loads(given.dataset.profile) == {"train": 100, "val": 20, "test": 30, "classes": 10}
    tags = runs[NAME].data.tags
    assert tags["host"] == platform.node()
    assert tags["version.mlflow"] == mlflow.__version__
    assert "mlflow.source.name" in tags
    assert tags["command"] == "python -m search --budget 50% --budget 1kparams --model lenet5 --data digits"
    assert client.get_experiment_by_name("slimfront").tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_store_knows_at_the_end_that_it_has_every_record(folder: Path, runs: dict[str, Run]) -> None:
    written = (folder / "mlflow.jsonl").read_text().count("\n") - 1  # the first line is the heading
    assert int(runs[NAME].data.tags["slimfront.records"]) == written  # else `search sync` would send them again


def test_learning_curves_are_logged_by_epoch(client: MlflowClient, runs: dict[str, Run]) -> None:
    assert history(client, runs[NAME], "dense_val_accuracy") == [(1, 0.7), (2, 0.9)]


def test_the_parent_has_the_chosen_network(runs: dict[str, Run]) -> None:
    metrics = runs[NAME].data.metrics
    assert (metrics["chosen_accuracy"], metrics["chosen_flops"]) == (0.8, 482)


def test_the_picture_is_renewed_while_the_search_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("search.tracking.mlflow_tracker.PICTURE_SECONDS", 0.0)
    monkeypatch.setattr("search.tracking.mlflow_tracker.STOP_SECONDS", 60.0)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = MlflowTracker(tmp_path, config(model="lenet5", run_name="mine", experiment="other"))
    begin(tracker)
    end_trial(tracker, complete(), complete())
    tracker.on_search_abort()
    client = MlflowClient(tracker.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("other").experiment_id], "attributes.run_name = 'mine'")
    assert artifacts(client, run) == {"front.png"}


def test_a_moved_run_folder_keeps_its_artifacts(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    rebase_artifacts(moved)
    client = MlflowClient(f"sqlite:///{moved / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("slimfront")
    run = next(run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == NAME)
    assert run.info.artifact_uri.startswith((moved / "mlartifacts").as_uri())
    assert "front.json" in artifacts(client, run)


def test_the_parent_shows_the_search_as_it_grows(client: MlflowClient, runs: dict[str, Run]) -> None:
    assert history(client, runs[NAME], "hypervolume") == [(1, pytest.approx(0.456)), (2, pytest.approx(0.456))]
    assert history(client, runs[NAME], "best_accuracy") == [(1, 0.6), (2, 0.6)]
    assert history(client, runs[NAME], "front_size") == [(1, 1.0), (2, 1.0)]


def test_the_parent_has_the_difference_to_the_best_baseline(runs: dict[str, Run]) -> None:
    metrics = runs[NAME].data.metrics
    assert metrics["over_baseline_mean"] == pytest.approx(0.25)
    assert metrics["over_baseline_standard_error"] == pytest.approx(0.05)
    assert metrics["over_baseline_noise"] > 0.05


def test_a_child_has_its_candidate_and_its_result(client: MlflowClient, runs: dict[str, Run]) -> None:
    child = runs["trial 0000"]
    assert child.data.params == {
        "method": "di",
        "baseline": "searched",
        "seed": "7",
        "allocation": "search",
        "budget_fraction": "0.5",
        "di.ridge": "0.1",
        "di.way": "greedy",
    }
    assert {name: child.data.tags[name] for name in ("on_front", "chosen", "baseline")} == {
        "on_front": "true",
        "chosen": "true",
        "baseline": "false",
    }
    assert {name: child.data.metrics[name] for name in ("width.conv1", "width.conv2")} == {
        "width.conv1": 0.5,
        "width.conv2": 1.0,
    }
    figures = {name: child.data.metrics[name] for name in ("accuracy", "flops", "params", "seconds", "test_accuracy")}
    assert figures == {"accuracy": 0.6, "flops": 480, "params": 40, "seconds": 2.0, "test_accuracy": 0.55}
    assert history(client, child, "val_accuracy") == [(0, 0.3), (1, 0.6)]
    assert (child.info.status, child.data.tags["state"], child.data.tags["on_front"]) == (
        "FINISHED",
        "complete",
        "true",
    )
    assert child.info.end_time - child.info.start_time == pytest.approx(2000, abs=1)


def test_a_view_of_the_page_filters_the_front(client: MlflowClient, runs: dict[str, Run]) -> None:
    experiment = client.get_experiment_by_name("slimfront")
    view = json.loads(experiment.tags[VIEW])
    assert view["name"] == "front of lenet5 on digits"
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    found = client.search_runs([experiment.experiment_id], state["searchFilter"])
    assert [run.info.run_name for run in found] == ["trial 0000"]
    scatter, parallel = state["compareRunCharts"]
    drawn = {scatter["xaxis"]["key"], scatter["yaxis"]["key"], *parallel["selectedMetrics"]}
    assert drawn == {"flops", "accuracy", "width.conv1", "width.conv2"}
    assert drawn <= set(runs["trial 0000"].data.metrics)


@pytest.mark.slow
def test_the_pages_of_a_server_show_the_front_in_a_browser(folder: Path, runs: dict[str, Run]) -> None:
    browser = shutil.which("chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    if browser is None:
        pytest.skip("no chromium is installed")
    experiment = runs[NAME].info.experiment_id
    with mlflow_server(folder / "mlflow.db") as server, playwright.sync_playwright() as drive:
        opened = drive.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 1600, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(page_address(server, experiment))
        page.get_by_text(NAME).first.wait_for()
        assert "/runs?workflowType=machine_learning" in page.url
        view = VIEW.removeprefix("mlflow.sharedViewState.")
        page.goto(f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={view}")
        page.get_by_text("trial 0000").wait_for()
        shown = {name: page.locator(f".ag-row [col-id='metrics.`{name}`']") for name in ("accuracy", "flops", "params")}
        assert {name: cells.all_inner_texts() for name, cells in shown.items()} == {
            "accuracy": ["0.6"],
            "flops": ["480"],
            "params": ["40"],
        }
        page.goto(page_address(server, experiment, runs["trial 0000"].info.run_id))
        row = page.get_by_role("row").filter(has_text="width.conv1")
        assert row.inner_text().split() == ["width.conv1", "0.5"]
        opened.close()


@contextmanager
def mlflow_server(store: Path) -> Iterator[str]:
    """Run MLflow's server on a store; yield its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with subprocess.Popen(
        [*command, "--backend-store-uri", f"sqlite:///{store}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:
        try:
            for _ in range(240):
                with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
                time.sleep(0.5)
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def test_widths_are_a_json_artifact(client: MlflowClient, runs: dict[str, Run], tmp_path: Path) -> None:
    path = client.download_artifacts(runs["trial 0000"].info.run_id, "widths.json", str(tmp_path))
    assert Widths(json.loads(Path(path).read_text())) == WIDTHS


def test_intermediate_networks_are_steps_of_the_child(
    client: MlflowClient, runs: dict[str, Run], tmp_path: Path
) -> None:
    child = runs["trial 0000"]
    assert history(client, child, "intermediate_accuracy") == [(1, 0.7), (2, 0.8)]
    assert history(client, child, "intermediate_flops") == [(1, 481.0), (2, 482.0)]
    assert history(client, child, "intermediate_test_accuracy") == [(2, 0.75)]
    figures = {name: history(client, child, f"intermediate_test_{name}") for name in ("mean", "std", "seeds")}
    assert figures == {"mean": [(2, 0.55)], "std": [(2, pytest.approx(0.1 / 2**0.5))], "seeds": [(2, 2.0)]}
    path = client.download_artifacts(child.info.run_id, "intermediate.json", str(tmp_path))
    assert json.loads(Path(path).read_text()) == {"0.1": dict(WIDTHS), "0.2": dict(WIDTHS)}


def test_a_failed_trial_is_a_failed_run_with_its_reason(runs: dict[str, Run]) -> None:
    child = runs["trial 0001"]
    assert (child.info.status, child.data.tags["state"]) == ("FAILED", "failed")
    assert child.data.tags["failure_reason"] == "out of memory"
    assert child.data.params["baseline"] == "uniform"
    assert set(child.data.metrics) == {"seconds"}


def test_the_front_is_a_table_and_the_report_an_artifact(
    client: MlflowClient, runs: dict[str, Run], tmp_path: Path
) -> None:
    parent = runs[NAME]
    assert artifacts(client, parent) == {"front.json", "front.png", "config.yaml", "chosen"}
    assert artifacts(client, parent, "chosen") == {"chosen/widths.json"}
    assert json.loads(parent.data.tags["mlflow.loggedArtifacts"]) == [{"path": "front.json", "type": "table"}]
    table = json.loads(Path(client.download_artifacts(parent.info.run_id, "front.json", str(tmp_path))).read_text())
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    assert row["flops"] == 480
    assert (row["percent_of_dense"], row["val_accuracy"], row["test_accuracy"]) == (24.0, 0.6, 0.55)


def test_artifacts_lie_in_the_run_folder(folder: Path, runs: dict[str, Run]) -> None:
    assert runs[NAME].info.artifact_uri.startswith((folder / "mlartifacts").as_uri())


def test_another_search_joins_the_experiment_and_an_aborted_one_is_failed(
    folder: Path, client: MlflowClient, tmp_path: Path
) -> None:
    tracker = MlflowTracker(tmp_path, config(f"sqlite:///{folder / 'mlflow.db'}", model="vgg16"))
    begin(tracker)
    tracker.on_search_abort()
    (experiment,) = [found for found in client.search_experiments() if found.name == "slimfront"]
    (run,) = client.search_runs([experiment.experiment_id], "params.model = 'vgg16'")
    assert run.info.status == "FAILED"


def test_a_store_that_cannot_be_opened_is_a_clear_error(tmp_path: Path) -> None:
    tracker = MlflowTracker(tmp_path, config("nonsense://server"))
    with pytest.raises(TrackingError, match=r"cannot record to 'nonsense://server' .* --tracking-uri") as caught:
        begin(tracker)
    assert "\n" not in str(caught.value)
    tracker.on_search_abort()


class BrokenRuns:
    """A store that opens, takes nothing while it is away, and notes the trials that it takes."""

    taken = 0

    def __init__(self, away: float = math.inf) -> None:
        self._back = time.monotonic() + away
        self.trials: list[str] = []

    def answers(self) -> bool:
        return time.monotonic() > self._back

    def send(self, record: Record) -> None:
        if not self.answers():
            raise MlflowException("server is gone")
        self.trials += [record.run] if record.status and record.run else []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def test_a_server_that_dies_is_warned_of_once_and_loses_no_search(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(SearchRuns, "open", lambda *_: BrokenRuns())
    monkeypatch.setattr("search.tracking.mlflow_tracker.FLUSH_SECONDS", 0.1)
    tracker = MlflowTracker(tmp_path, config("http://server:5000", log_models="none"))
    with caplog.at_level(logging.WARNING):
        begin(tracker)
        for number in range(5):
            end_trial(tracker, complete(number))
        finish(tracker, search_result(complete()))
    assert [record.message for record in caplog.records] == [
        "MLflow at http://server:5000 did not take a record (server is gone); the search goes on",
        "MLflow at http://server:5000 has not taken all records within 0 s; they wait in the run folder, "
        f"python -m search sync {tmp_path} sends them",
    ]


def test_a_record_that_a_server_refuses_is_named_and_the_others_arrive(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    class Picky(BrokenRuns):
        def send(self, record: Record) -> None:
            if record.run == "trial 0001" and record.status:
                raise MlflowException("a metric of this name is not allowed")
            super().send(record)

    runs = Picky(away=-1)
    monkeypatch.setattr(SearchRuns, "open", lambda *_: runs)
    tracker = MlflowTracker(tmp_path, config("http://server:5000"))
    begin(tracker)
    for number in range(3):
        end_trial(tracker, complete(number))
    finish(tracker, search_result(complete()))
    assert runs.trials == ["trial 0000", "trial 0002"]
    assert [record.message for record in caplog.records] == [
        "MLflow at http://server:5000 refused a record of trial 0001 (a metric of this name is not allowed): it is not "
        "sent again, mlflow.jsonl keeps it; the search goes on"
    ]


def test_records_of_an_outage_arrive_when_the_server_is_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = BrokenRuns(away=0.3)
    monkeypatch.setattr(SearchRuns, "open", lambda *_: runs)
    monkeypatch.setattr("search.tracking.mlflow_tracker.RETRY_SECONDS", 0.05)
    tracker = MlflowTracker(tmp_path, config("http://server:5000"))
    begin(tracker)
    for number in range(5):
        end_trial(tracker, complete(number))
    finish(tracker, search_result(complete()))
    assert runs.trials == [f"trial {number:04d}" for number in range(5)]


def test_logging_a_trial_does_not_wait_for_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class SlowRuns:
        taken = 0

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_, **__: time.sleep(0.2)

    monkeypatch.setattr(SearchRuns, "open", lambda *_: SlowRuns())
    tracker = MlflowTracker(tmp_path, config())
    begin(tracker)
    start = time.perf_counter()
    end_trial(tracker, complete())
    assert time.perf_counter() - start < 0.1
    finish(tracker, search_result(complete()))
    assert time.perf_counter() - start > 0.2


def test_another_segment_of_a_trial_is_logged_under_other_budgets_too(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    runs = SearchRuns.open(store, tmp_path, Heading("slimfront", NAME, 0), local=True)
    recorder = Recorder(config(), NAME, "accuracy")
    full: Any = SimpleNamespace(full={"conv1": 8, "conv2": 8})
    for limit, accuracy in ((1000, 0.6), (500, 0.7)):
        problem: Any = SimpleNamespace(space=full, budgets=(Budget("flops", limit),))
        runs.send(recorder.trial(complete(accuracy=accuracy), problem, time.time()))
    client = MlflowClient(tracking_uri=store)
    (child,) = client.search_runs([runs.experiment], "attributes.run_name = 'trial 0000'")
    assert (child.data.metrics["accuracy"], child.data.params["budget_fraction"]) == (0.7, "0.5")
    assert child.data.tags["now.budget_fraction"] == "1"
    assert history(client, child, "val_accuracy") == [(0, 0.3), (1, 0.6)]


def test_the_command_opens_mlflow_on_this_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "my run"
    command = MlflowTracker(folder, config()).command()
    assert shlex.split(command) == ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert MlflowTracker(folder, config()).command() == "http://server:5000"
    assert MlflowTracker(folder, config("http://other")).uri == "http://other"
