"""Searches that record to a real MLflow server which dies in their midst."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer
from typing_extensions import override

from configs.schema import RunConfig
from runners.config import DataConfig, LatencyConfig, RunnerConfig, TrainConfig
from runners.trial import TrialResult
from search.callbacks import Progress, SearchCallback
from search.cli import main
from search.orchestrator import run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # MLflow's and torch's own
TRIALS = 5


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path)
    yield server
    server.kill()


@dataclasses.dataclass
class Outage(SearchCallback):
    """Kills the server after the second trial, and starts it again after the fourth if it comes back."""

    server: MlflowServer
    comes_back: bool

    @override
    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        if progress.finished == 2:
            self.server.kill()
        if progress.finished == 4 and self.comes_back:
            self.server.start()


def config(server: MlflowServer, folder: Path) -> RunConfig:
    return RunConfig(
        budget=("50%",),
        model="lenet5",
        trials=TRIALS,
        final_epochs="none",
        out=str(folder),
        tracking_uri=server.url,
        register="narrow",
        log_models="chosen",
        data=DataConfig("digits"),
        train=TrainConfig(epochs=1, dense_epochs=1),
        runner=RunnerConfig("local"),
        latency=LatencyConfig(device="none"),
    )


def assert_complete(server: MlflowServer) -> None:
    """Hold the server against a whole search: every run, figure, artifact, model and version once."""
    client = MlflowClient(tracking_uri=server.url)
    experiment = client.get_experiment_by_name("slimfront").experiment_id
    found = client.search_runs([experiment])
    runs = {run.info.run_name: run for run in found}
    parent = runs.pop("lenet5 digits 50%")
    assert sorted(runs) == [f"trial {number:04d}" for number in range(TRIALS)]
    assert len(found) == TRIALS + 1
    assert {run.info.status for run in found} == {"FINISHED"}
    for child, name in itertools.product(runs.values(), ("seconds", "val_accuracy")):
        steps = [point.step for point in client.get_metric_history(child.info.run_id, name)]
        assert steps == sorted(set(steps))
        assert steps
    growth = client.get_metric_history(parent.info.run_id, "hypervolume")
    assert [point.step for point in growth] == list(range(1, TRIALS + 1))
    artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"result.json", "front.csv", "front.png", "report.html", "front.json", "config.yaml", "chosen"}
    (model,) = client.search_logged_models([experiment])
    assert str(model.status) == "READY"
    (version,) = client.search_model_versions("name = 'narrow'")
    assert version.source == model.artifact_location


def test_a_server_that_comes_back_has_everything_at_the_end(server: MlflowServer, tmp_path: Path) -> None:
    run(config(server, tmp_path / "run"), [Outage(server, comes_back=True)])
    assert_complete(server)


def test_what_a_server_missed_is_sent_later_and_nothing_twice(
    server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("search.tracking.mlflow_tracker.FLUSH_SECONDS", 1.0)
    monkeypatch.setattr("search.tracking.mlflow_tracker.MODEL_SECONDS", 0.0)
    folder = tmp_path / "run"
    run(config(server, folder), [Outage(server, comes_back=False)])
    assert f"python -m search sync {folder} sends them" in caplog.text
    server.start()
    server.wait()
    assert main(["sync", str(folder)]) == 0
    assert "lacked" in capsys.readouterr().out
    assert_complete(server)
    assert main(["sync", str(folder)]) == 0
    assert "had all" in capsys.readouterr().out
    assert_complete(server)
