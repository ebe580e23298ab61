"""Room: how many trials a Ray has room for, while nodes join and leave."""

import logging
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from runners.base import RunnerError
from runners.config import RunnerConfig
from spaces.errors import LostError

INTERVAL = 2.0  # seconds
TELL_SECONDS = 300.0  # between two lines that tell that no node can take a trial
_log = logging.getLogger(__name__)


class NoNodeError(LostError):
    """A Ray cluster no node of which could take a trial until the time limit."""


def capacity(config: RunnerConfig) -> int:
    """Return how many trials the connected Ray has room for: none on a cluster whose nodes are still to join.

    Raises:
        RunnerError: it is no cluster, and has room for none.
    """
    workers = fitting(ray.cluster_resources(), config)  # type: ignore[no-untyped-call]
    if workers < 1 and not config.cluster:
        raise RunnerError(f"{_lack(config)}; lower --cpus-per-trial or --gpus-per-trial")
    return workers


def _lack(config: RunnerConfig) -> str:
    found = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return (
        f"a trial needs {config.cpus_per_trial} CPUs and {config.gpus_per_trial:g} GPUs, this Ray has "
        f"{found.get('CPU', 0):g} and {found.get('GPU', 0):g}"
    )


def fitting(resources: Mapping[str, float], config: RunnerConfig) -> int:
    """Return how many trials fit into these resources."""
    workers = int(resources.get("CPU", 0)) // config.cpus_per_trial
    if config.gpus_per_trial:
        workers = min(workers, int(resources.get("GPU", 0) / config.gpus_per_trial + 1e-9))
    return workers


def check_files(paths: Sequence[str]) -> None:
    """Raise a RunnerError that names the nodes on which one of these paths is missing."""
    look = ray.remote(num_cpus=0)(_missing)
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in alive]  # type: ignore[no-untyped-call]
    asked = [look.options(scheduling_strategy=place).remote(paths) for place in places] if paths else []
    for path in paths:
        found = zip(alive, ray.get(asked), strict=True)
        without = [node["NodeManagerHostname"] for node, missing in found if path in missing]
        if without:
            raise RunnerError(
                f"{path!r} is missing on {len(without)} of {len(alive)} nodes of the cluster: {', '.join(without)}; "
                "put the images there at the same path, or on a folder that all nodes share"
            )


def _missing(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]


class Room:
    """How many trials the connected Ray has room for; on a cluster it asks Ray's autoscaler for the room of one more.

    Its `with` block begins once a node can take a trial. In it, it asks in the background: without a head, Ray does not
    answer.

    Args:
        patience: seconds for which such a node is waited for.

    Attributes:
        trials: how many there is room for.
        nodes: ids of the nodes that are alive.
    """

    def __init__(self, config: RunnerConfig, patience: float = math.inf) -> None:
        self._config, self._patience = config, patience
        self.trials, self.nodes = capacity(config), frozenset[str]()
        self._closed = threading.Event()
        self._asking = threading.Thread(target=self._ask, name="ray room", daemon=True)

    def __enter__(self) -> "Room":
        """Wait for a node that can take a trial, and begin to ask; raise a NoNodeError where none joins in time."""
        self._request(self.trials + 1)
        try:
            self._look()
            self._wait()
            self._request(self.trials + 1)  # nodes have joined meanwhile
        except BaseException:
            self._request(0)
            raise
        self._asking.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop asking, and need no more room, unless the run has ended by an error of Ray: it may not answer then."""
        self._closed.set()
        if error[0] is None or isinstance(error[1], RunnerError):
            self._request(0)

    def _wait(self) -> None:
        began, told = time.monotonic(), -math.inf
        while not self.trials:
            now = time.monotonic()
            waited, way_out = now - began, "start a node, or lower --cpus-per-trial or --gpus-per-trial"
            if waited >= self._patience:
                raise NoNodeError(
                    f"no node of the Ray cluster could take a trial within the time limit ({_lack(self._config)}); "
                    f"{way_out}"
                )
            if now - told >= TELL_SECONDS:
                told = now
                _log.warning(
                    "no node of the Ray cluster can take a trial yet (%s); the search has waited for %.0f s and waits "
                    "%s: %s",
                    _lack(self._config),
                    waited,
                    "on" if self._patience == math.inf else f"{self._patience - waited:.0f} s more (--time-limit)",
                    way_out,
                )
            time.sleep(min(INTERVAL, self._patience - waited))
            self._look()

    def _ask(self) -> None:
        while not self._closed.wait(INTERVAL):
            try:
                before = self.trials
                self._look()
                if self.trials != before:
                    self._request(self.trials + 1)
            except Exception:  # whatever Ray raises while its head is away; the lifeline says when that is for good
                continue

    def _look(self) -> None:
        alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        self.nodes = frozenset(node["NodeID"] for node in alive)
        self.trials = sum(fitting(node["Resources"], self._config) for node in alive)

    def _request(self, trials: int) -> None:
        """Ask the autoscaler of a cluster for room for so many trials in all."""
        if self._config.cluster:
            trial = {"CPU": self._config.cpus_per_trial, "GPU": self._config.gpus_per_trial}
            bundle = {name: amount for name, amount in trial.items() if amount}
            request_resources(bundles=[bundle] * trials)
