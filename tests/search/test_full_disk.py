"""Searches on disks that become full: small file systems in memory, which take root to mount."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
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
from spaces.errors import ExitCode, NoRoomError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_programs")]
FILLER = "filler"
TESTS = Path(__file__).resolve().parent.parent
OBJECTS = 120 << 20  # bytes of Ray's memory for objects; the images of `large_images` take 72 million of them


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "32m") as disk:
        yield disk


@pytest.fixture
def disk_of_ray() -> Iterator[Path]:
    # A short path, because Ray's sockets are in it.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        with mounted(Path(folder), "500m") as disk:
            yield disk


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


def test_a_full_disk_of_ray_ends_the_search_with_its_front_and_resume_goes_on(
    disk_of_ray: Path, tmp_path: Path
) -> None:
    environment = {
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "RAY_TMPDIR": str(disk_of_ray),
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(OBJECTS),
    }

    def begin(flags: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "search", *flags.split()]
        outputs = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=os.environ | environment, **outputs)

    search = begin(
        "--budget 60% --data large_images:images --image-size 136 --model large_images:net --skip 7 --runner ray "
        "--device cpu --precision float32 --latency-device none --method l2 --trials 6 --epochs 1 --dense-epochs 1 "
        "--rungs none --final-epochs none --out run"
    )
    while not [*tmp_path.glob("run/trials/*")] and search.poll() is None:
        time.sleep(0.2)
    assert shutil.disk_usage(disk_of_ray).used > OBJECTS / 4, "Ray has no objects on its disk"
    fill(disk_of_ray)
    _, errors = search.communicate(timeout=300)
    assert search.returncode == ExitCode.LOST, errors
    told = errors.splitlines()[-1]
    assert told.startswith(f"error: no room left on the disk of '{disk_of_ray}'; the front of what was finished is")
    assert told.endswith("python -m search --resume run goes on")
    assert len(read_result(tmp_path / "run").front)
    (disk_of_ray / FILLER).unlink()
    again = begin("--resume run --trust-code")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == ExitCode.RESULT, errors
    assert [trial.state for trial in read_result(tmp_path / "run").results] == ["complete"] * 6
