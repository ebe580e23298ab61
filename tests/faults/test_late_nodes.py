"""A search on a Ray cluster that has its head alone when the search begins."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_nodes import RayNodes
from tiny_search import tiny_config

from runners.config import RunnerConfig
from runners.ray.room import NoNodeError
from search.orchestrator import run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayNodes]:
    cluster = RayNodes(tmp_path, nodes=0)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.close()


class Joining(logging.Handler):
    """Adds a node to a cluster when the search says that it waits for one."""

    def __init__(self, cluster: RayNodes) -> None:
        super().__init__()
        self._cluster, self.heard = cluster, list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())
        threading.Thread(target=self._cluster.add).start()


def test_a_search_waits_for_the_first_node_and_then_runs_to_its_end(head: RayNodes, tmp_path: Path) -> None:
    joining, log = Joining(head), logging.getLogger("runners.ray.room")
    log.addHandler(joining)
    try:
        result = run(tiny_config(tmp_path / "run", runner=RunnerConfig(ray_address=head.address)))
    finally:
        log.removeHandler(joining)
    assert [trial.state for trial in result.results] == ["complete"] * 5
    (line,) = joining.heard
    assert line.startswith("no node of the Ray cluster can take a trial yet (a trial needs 1 CPUs and 0 GPUs, this Ray")


def test_the_time_limit_ends_the_wait_for_the_first_node(head: RayNodes, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", runner=RunnerConfig(ray_address=head.address), time_limit="60s")
    with pytest.raises(NoNodeError, match="could take a trial within the time limit"):
        run(config)
    assert not (tmp_path / "run").exists()
