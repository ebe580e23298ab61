"""A search on a Ray cluster that has its head alone when the search begins."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_inputs import SEARCH
from ray_nodes import RayNodes

from search.results.loading import read_result
from spaces.errors import ExitCode

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TESTS = Path(__file__).resolve().parent.parent
WAITS = "no node of the Ray cluster can take a trial yet (a trial needs 1 CPUs and 0 GPUs, this Ray has 0 and 0)"


@pytest.fixture
def head(tmp_path: Path) -> Iterator[RayNodes]:
    cluster = RayNodes(tmp_path, nodes=0)
    yield cluster
    cluster.close()


def begin(head: RayNodes, folder: Path, *more: str) -> "subprocess.Popen[str]":
    flags = f"--runner ray --ray-address {head.address} --method l2,random --trials 5 --final-epochs none --out run"
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    return subprocess.Popen(
        [sys.executable, "-m", "search", *SEARCH, *flags.split(), *more],
        cwd=folder,
        env=os.environ | head.environment | {"PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_search_waits_for_the_first_node_and_then_runs_to_its_end(head: RayNodes, tmp_path: Path) -> None:
    search = begin(head, tmp_path)
    assert search.stderr is not None
    waits = next(line for line in search.stderr if WAITS in line)
    assert waits.endswith("waits on: start a node, or lower --cpus-per-trial or --gpus-per-trial\n")
    head.add()
    _, errors = search.communicate(timeout=300)
    assert search.returncode == ExitCode.RESULT, errors
    assert WAITS not in errors
    assert [trial.state for trial in read_result(tmp_path / "run").results] == ["complete"] * 5


def test_the_time_limit_ends_the_wait_for_the_first_node(head: RayNodes, tmp_path: Path) -> None:
    search = begin(head, tmp_path, "--time-limit", "60s")
    _, errors = search.communicate(timeout=300)
    assert search.returncode == ExitCode.LOST, errors
    *_, last = errors.splitlines()
    assert last.startswith("error: no node of the Ray cluster could take a trial within the time limit (a trial needs")
    assert not (tmp_path / "run").exists()
