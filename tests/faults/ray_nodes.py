"""Ray's own test cluster on loopback, in a process of its own: the head without CPUs, and nodes that are killed."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

STARTS = 5  # of a node at most


class RayNodes:
    """A head and some nodes of one CPU each, which demand a token from whoever connects.

    Attributes:
        environment: variables with which a search is let in.
    """

    def __init__(self, folder: Path, nodes: int = 2) -> None:
        token, self._log = folder / "token", folder / "ray.log"
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("a"),
            env=os.environ | self.environment | {"RAY_USAGE_STATS_ENABLED": "0"},
            text=True,
        )
        self.address = str(self._call("start"))
        self._nodes: list[int] = []  # process of the raylet by node
        for _ in range(nodes):
            self.add()

    @property
    def raylets(self) -> list[int]:
        """The processes of the nodes that are alive; on a busy machine one also goes by itself."""
        return [pid for pid in self._nodes if _runs(pid)]

    def add(self) -> None:
        self._nodes.append(self._call("add"))

    def kill(self, node: int) -> int:
        """Kill a node and all that runs on it, as a machine that loses its power does; return how many processes."""
        raylet = self.raylets[node]
        lost = [psutil.Process(raylet)]
        with contextlib.suppress(psutil.Error):  # it may go by itself just now
            lost += lost[0].children(recursive=True)
        for process in lost:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._call("remove", self._nodes.index(raylet))
        return len(lost)

    def close(self) -> None:
        with contextlib.suppress(RuntimeError, OSError):  # it was ended by a signal that all processes got
            self._call("stop")
        self._process.wait(30)

    def _call(self, name: str, argument: int = 0) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, argument]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"Ray does not {name}: {self._log.read_text()[-1000:]}")
        return json.loads(answer)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _added(cluster: Any, **settings: Any) -> Any:
    """Return a new node; on a busy machine some do not come up in the time that Ray gives them."""
    for _ in range(STARTS - 1):
        with contextlib.suppress(Exception):  # Ray raises bare ones
            return cluster.add_node(**settings)
    return cluster.add_node(**settings)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints
    from ray.cluster_utils import Cluster

    cluster, nodes = Cluster(), list[Any]()
    common = {"object_store_memory": 200_000_000, "include_dashboard": False}
    for line in sys.stdin:
        name, argument = json.loads(line)
        answer: Any = None
        if name == "start":
            nodes.append(cluster.add_node(num_cpus=0, **common))
            answer = cluster.address
        elif name == "add":
            nodes.append(_added(cluster, num_cpus=1, **common))
            answer = nodes[-1].all_processes["raylet"][0].process.pid
        elif name == "remove":
            cluster.remove_node(nodes[1 + argument], allow_graceful=False)
        elif name == "stop":
            cluster.shutdown()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if name == "stop":
            break


if __name__ == "__main__":
    main()
