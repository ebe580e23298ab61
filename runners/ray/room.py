"""Room: how many trials a Ray has room for, while nodes join and leave."""

import os
import threading
from collections.abc import Mapping, Sequence

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from runners.base import RunnerError
from runners.config import RunnerConfig

INTERVAL = 2.0  # seconds


def capacity(config: RunnerConfig) -> int:
    """Return how many trials the connected Ray has room for; raise a RunnerError if there is room for none."""
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    workers = fitting(resources, config)
    if workers < 1:
        raise RunnerError(
            f"a trial needs {config.cpus_per_trial} CPUs and {config.gpus_per_trial:g} GPUs, this Ray has "
            f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}; lower --cpus-per-trial or --gpus-per-trial"
            + (", or start a node first" if config.cluster else "")
        )
    return workers


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

    It asks in the background inside its `with` block: without a head, Ray does not answer.

    Attributes:
        trials: how many there is room for.
        nodes: ids of the nodes that are alive.
    """

    def __init__(self, config: RunnerConfig) -> None:
        self._config = config
        self.trials, self.nodes = capacity(config), frozenset[str]()
        self._closed = threading.Event()
        self._asking = threading.Thread(target=self._ask, name="ray room", daemon=True)

    def __enter__(self) -> "Room":
        """Begin to ask."""
        self._request(self.trials + 1)
        self._look()
        self._asking.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop asking, and need no more room, unless the run has ended by an error."""
        self._closed.set()
        if error[0] is None:
            self._request(0)

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
