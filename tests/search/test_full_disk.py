"""Searches on disks that become full: small file systems in memory, which take root to mount."""

import contextlib
import dataclasses
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tiny_search import tiny_config
from typing_extensions import override

from runners.trial import TrialResult
from search.callbacks import Progress, SearchCallback
from search.orchestrator import run
from search.results.loading import read_result
from search.tracking.sync import send_missing
from spaces.errors import NoRoomError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_programs")]
FILLER = "filler"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / FILLER).open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@dataclasses.dataclass
class Filling(SearchCallback):
    """Fills a disk after the third trial."""

    disk: Path

    @override
    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        if progress.finished == 3:
            fill(self.disk)


def assert_whole(folder: Path) -> None:
    """Hold a run folder against a search of five trials: each has a result, weights and a run in MLflow, once."""
    result = read_result(folder)
    assert [trial.trial.number for trial in result.results] == list(range(5))
    assert all((folder / trial.path).is_file() for trial in result.results)
    assert len(result.front)
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs(["1"])
    assert len(runs) == 6
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_full_run_folder_ends_the_search_and_resume_goes_on_once_there_is_room(small_disk: Path) -> None:
    folder = small_disk / "run"
    config = tiny_config(folder)
    with pytest.raises(NoRoomError) as caught:
        run(config, [Filling(small_disk)])
    told = str(caught.value)
    assert told.startswith("no room left on the disk of ")
    assert told.endswith(f"the finished trials are kept, make room and python -m search --resume {folder} goes on")
    assert "\n" not in told
    (small_disk / FILLER).unlink()
    result = run(dataclasses.replace(config, out="", resume=str(folder)))
    assert [trial.trial.number for trial in result.results] == list(range(5))
    assert_whole(folder)


def test_a_full_cache_costs_nothing_but_the_cache(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(small_disk))
    fill(small_disk)
    run(tiny_config(tmp_path / "run"))
    assert_whole(tmp_path / "run")
    assert [record.message for record in caplog.records if "No space left" in record.message] == [
        f"the cache {small_disk} cannot be written (No space left on device): the search goes on, and the next one "
        "computes anew what is not kept; make room there, or point SLIMFRONT_CACHE at another folder"
    ]


def test_records_for_mlflow_wait_while_the_temporary_folder_is_full(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    monkeypatch.setattr("search.tracking.mlflow_tracker.FLUSH_SECONDS", 1.0)
    run(tiny_config(tmp_path / "run"), [Filling(small_disk)])
    assert "did not take a record" in caplog.text
    assert "they wait in the run folder" in caplog.text
    (small_disk / FILLER).unlink()
    assert send_missing(tmp_path / "run", trust=True).ended
    assert_whole(tmp_path / "run")
