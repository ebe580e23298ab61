"""A search waits for a node that can take its trials."""

import logging
from typing import Any

import pytest

from runners.config import RunnerConfig
from runners.ray.room import NoNodeError, Room, capacity

CONFIG = RunnerConfig(ray_address="127.0.0.1:6379", cpus_per_trial=2)
HEAD: dict[str, Any] = {"Alive": True, "NodeID": "head", "Resources": {"memory": 1e9}}
SMALL: dict[str, Any] = {"Alive": True, "NodeID": "small", "Resources": {"CPU": 1.0}}
LARGE: dict[str, Any] = {"Alive": True, "NodeID": "large", "Resources": {"CPU": 5.0}}


class Cluster:
    """What Ray says of its nodes, which change at every look, and what the autoscaler is asked for."""

    def __init__(self, *looks: list[dict[str, Any]]) -> None:
        self._looks, self.requests = list(looks), list[list[dict[str, float]]]()

    def nodes(self) -> list[dict[str, Any]]:
        return self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]

    def resources(self) -> dict[str, float]:
        return {"CPU": sum(node["Resources"].get("CPU", 0.0) for node in self._looks[0])}

    def request(self, bundles: list[dict[str, float]]) -> None:
        self.requests.append(bundles)

    def install(self, patch: pytest.MonkeyPatch) -> "Cluster":
        patch.setattr("ray.nodes", self.nodes)
        patch.setattr("ray.cluster_resources", self.resources)
        patch.setattr("runners.ray.room.request_resources", self.request)
        patch.setattr("runners.ray.room.INTERVAL", 0.01)
        return self


def test_a_search_waits_for_a_node_that_can_take_a_trial_and_asks_the_autoscaler_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster([HEAD], [HEAD], [HEAD, SMALL], [HEAD, SMALL, LARGE]).install(monkeypatch)
    assert capacity(CONFIG) == 0
    with Room(CONFIG) as room:
        assert room.trials == 2
        assert room.nodes == {"head", "small", "large"}
        # The room of the first trial, while it waited, and then of one more than there is.
        assert cluster.requests == [[{"CPU": 2}], [{"CPU": 2}] * 3]
    assert cluster.requests[-1] == []
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "no node of the Ray cluster can take a trial yet (a trial needs 2 CPUs and 0 GPUs, this Ray has 0 and 0); "
        "the search has waited for 0 s and waits on: start a node, or lower --cpus-per-trial or --gpus-per-trial"
    ]


def test_the_time_limit_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([HEAD, SMALL, SMALL]).install(monkeypatch)  # together they have two CPUs
    with pytest.raises(NoNodeError, match="within the time limit .a trial needs 2 CPUs and 0 GPUs, this Ray has 2 and"):
        Room(CONFIG, patience=0.05).__enter__()
    assert cluster.requests == [[{"CPU": 2}] * 2, []]
