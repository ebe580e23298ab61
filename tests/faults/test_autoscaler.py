"""Ray's autoscaler starts nodes for a search and stops them after it: a head without CPUs, nodes on the same machine.

Ray's own test cluster of this kind cannot be used: it ends every Ray of the machine when it begins.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from bad_inputs import SEARCH

from search.results.loading import read_result
from spaces.errors import ExitCode

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TESTS = Path(__file__).resolve().parent.parent
HEAD_NODE, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"  # as which Ray's provider of nodes knows the head
MOST_NODES = 2
START_SECONDS, STOP_SECONDS = 120.0, 120.0


class AutoscaledRay:
    """A head without CPUs whose autoscaler starts nodes of one CPU, at most `MOST_NODES`, and stops idle ones."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        token, settings = folder / "token", folder / "autoscaler.yaml"
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        settings.write_text(json.dumps(self._settings()))
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        own = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        own |= {"RAY_worker_niceness": "0"}
        self._files = tempfile.mkdtemp(prefix="ray")  # a short path: Ray's sockets are in it
        host, port = self.address.split(":")
        command = f"ray start --head --block --node-ip-address={host} --port={port} --num-cpus=0"
        command += f" --include-dashboard=false --object-store-memory=100000000 --temp-dir={self._files}"
        command += " --dashboard-agent-listen-port=0"  # its own port may be another Ray's
        self._process = subprocess.Popen(
            [*command.split(), f"--autoscaling-config={settings}"],
            env=os.environ | self.environment | own,
            stdout=(folder / "ray.log").open("w"),
            stderr=subprocess.STDOUT,
        )

    def _settings(self) -> dict[str, object]:
        worker = {"CPU": 1, "object_store_memory": 100_000_000}
        commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        return {
            "cluster_name": "one-machine",
            "max_workers": MOST_NODES,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": self.address,
                "head_node_id": HEAD_NODE,
                "use_node_id_as_ip": True,  # all nodes have the same address
                "disable_node_updaters": True,
            },
            "available_node_types": {
                HEAD_TYPE: {"resources": {}, "node_config": {}, "max_workers": 0},
                "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": MOST_NODES},
            },
            "head_node_type": HEAD_TYPE,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 0.1,
            **{f"{name}_commands": [] for name in commands},
            "auth": {},
            "file_mounts": {},
            "cluster_synced_files": [],
        }

    def nodes(self) -> int:
        """Return how many nodes run beside the head."""
        return sum(_is_raylet(process) for process in self._all()) - 1

    def close(self) -> None:
        for process in self._all():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait(30)
        shutil.rmtree(self._files, ignore_errors=True)

    def _all(self) -> list[psutil.Process]:
        head = psutil.Process(self._process.pid)
        return [head, *head.children(recursive=True)]


def _is_raylet(process: psutil.Process) -> bool:
    try:
        return process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _wait(until: float, seconds: float, cluster: AutoscaledRay) -> None:
    deadline = time.monotonic() + seconds
    while cluster.nodes() != until:
        assert time.monotonic() < deadline, f"{cluster.nodes()} nodes, expected {until}"
        time.sleep(0.5)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[AutoscaledRay]:
    ray = AutoscaledRay(tmp_path)
    try:
        yield ray
    finally:
        ray.close()


def test_the_autoscaler_starts_nodes_for_a_search_and_stops_them_after_it(
    cluster: AutoscaledRay, tmp_path: Path
) -> None:
    _wait(0, START_SECONDS, cluster)
    flags = f"--runner ray --ray-address {cluster.address} --method l2 --trials 8 --epochs 8 --out run"
    flags += " --rungs none --final-epochs none"  # so that it takes longer than a second node to start
    search = subprocess.Popen(
        [sys.executable, "-m", "search", *SEARCH, *flags.split()],
        cwd=tmp_path,
        env=os.environ | cluster.environment | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    most = 0
    while search.poll() is None:
        most = max(most, cluster.nodes())
        time.sleep(0.2)
    assert search.stderr is not None
    errors = search.stderr.read()
    assert search.returncode == ExitCode.RESULT, errors
    assert "no node of the Ray cluster can take a trial yet" in errors
    assert [trial.state for trial in read_result(tmp_path / "run").results] == ["complete"] * 8
    assert most == MOST_NODES
    _wait(0, STOP_SECONDS, cluster)
