"""What waits in a run folder for MLflow goes to the store later, and nothing twice."""

import json
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from search.cli import main
from search.results.serialization import ResultError
from search.tracking.journal import FILE, Figures, Heading, Journal, Record
from search.tracking.runs import SearchRuns
from search.tracking.sync import send_missing

TRIAL = Record(
    "trial 0003",
    start=1000,
    tags={"state": "complete"},
    params={"method": "di"},
    figures=[Figures(2000, 0, {"accuracy": 0.5}), Figures(1500, 1, {"val_accuracy": 0.25})],
    documents={"widths.json": {"conv1": 4}},
    status="FINISHED",
    end=2500,
)
MARK = Record("trial 0003", tags={"on_front": "true"})
GROWTH = Record(figures=[Figures(3000, 1, {"hypervolume": 0.75})])
END = Record(files=[("report.html", "")], status="FINISHED", end=4000)


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a search that was killed after its first trial, with a record torn."""
    folder = tmp_path / "run ä #1"
    folder.mkdir()
    (folder / "config.yaml").write_text("budget: [50%]\n")
    (folder / "report.html").write_text("report")
    journal = Journal(folder, Heading("team", "mine", 500))
    for record in (TRIAL, GROWTH, MARK):
        journal.append(record)
    with (folder / FILE).open("a") as file:
        file.write('{"run":"trial 0004","sta')
    return folder


def stored(uri: str) -> tuple[MlflowClient, dict[str, Run]]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("team")
    found = client.search_runs([experiment.experiment_id])
    runs = {run.info.run_name: run for run in found}
    assert len(found) == len(runs)
    return client, runs


def points(client: MlflowClient, run: Run, name: str) -> list[tuple[int, int, float]]:
    return [(point.timestamp, point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def assert_written(uri: str, status: str) -> None:
    """Hold what a store has against the records, each of them once."""
    client, runs = stored(uri)
    assert set(runs) == {"mine", "trial 0003"}
    parent, child = runs["mine"], runs["trial 0003"]
    assert (parent.info.start_time, parent.info.status, child.info.status) == (500, status, "FINISHED")
    assert (child.info.start_time, child.info.end_time, child.data.params) == (1000, 2500, {"method": "di"})
    assert {name: child.data.tags[name] for name in ("state", "on_front")} == {"state": "complete", "on_front": "true"}
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert points(client, child, "accuracy") == [(2000, 0, 0.5)]
    assert points(client, child, "val_accuracy") == [(1500, 1, 0.25)]
    assert points(client, parent, "hypervolume") == [(3000, 1, 0.75)]
    assert [artifact.path for artifact in client.list_artifacts(child.info.run_id)] == ["widths.json"]


def test_a_killed_search_is_written_later_and_goes_on_in_the_same_runs(folder: Path) -> None:
    done = send_missing(folder)
    assert (done.sent, done.total, done.ended) == (3, 3, False)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    assert_written(uri, "KILLED")
    assert send_missing(folder).sent == 0
    Journal(folder).append(END)  # the search was resumed, and ended
    done = send_missing(folder)
    assert (done.sent, done.total, done.ended) == (1, 4, True)
    assert_written(uri, "FINISHED")
    client, runs = stored(uri)
    assert [artifact.path for artifact in client.list_artifacts(runs["mine"].info.run_id)] == ["report.html"]


def test_records_that_are_sent_again_change_nothing(folder: Path) -> None:
    done = send_missing(folder)
    runs = SearchRuns.open(done.uri, folder, Journal(folder).heading, local=True)
    assert runs.taken == 3
    runs.confirm(0)  # as if the process had been killed before the store noted what it had taken
    assert send_missing(folder).sent == 3
    assert_written(done.uri, "KILLED")


def test_another_store_gets_everything_and_the_command_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    send_missing(folder)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert main(["sync", str(folder), "--tracking-uri", other]) == 0
    first, ending, *_ = capsys.readouterr().out.splitlines()
    assert first == f"MLflow at {other} lacked 3 of 3 records; it has them now."
    assert ending.startswith("The search has not ended, its run is marked as killed; python -m search --resume ")
    assert_written(other, "KILLED")


def test_a_run_folder_that_names_files_outside_it_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    Journal(folder).append(Record(files=[("../secret", "")]))
    with pytest.raises(ResultError, match=r"names '\.\./secret', which is outside the folder"):
        send_missing(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "has no mlflow.jsonl with records for MLflow"),
        ("not JSON\n", "is no journal of a search"),
        (json.dumps({"experiment": 3}) + "\n", "this is no Heading"),
    ],
)
def test_what_is_no_journal_is_an_error_of_one_line(
    content: str | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    assert main(["sync", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert reason in printed
    assert printed.count("\n") == 1


def test_a_run_folder_of_before_the_journal_is_told_from_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("budget: 50%\n")
    assert main(["sync", str(tmp_path)]) == 2
    told = f"error: '{tmp_path}' has no mlflow.jsonl with records for MLflow: its search kept none, "
    assert capsys.readouterr().err == f"{told}--resume {tmp_path} records it anew\n"


def test_a_server_that_does_not_answer_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", str(folder), "--tracking-uri", "http://user:secret@127.0.0.1:9"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: MLflow does not answer at 'http://user:***@127.0.0.1:9'")
    assert "start it, or give another --tracking-uri" in printed
