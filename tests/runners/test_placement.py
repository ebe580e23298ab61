"""Which runner takes the trials of a search, and how many run at once."""

import pytest

from runners.base import RunnerError
from runners.config import RunnerConfig
from runners.placement import pick_runner, workers


@pytest.mark.parametrize(
    ("config", "cpus", "runner", "at_once"),
    [
        (RunnerConfig(), 1, "local", 1),
        (RunnerConfig(), 4, "ray", 4),
        (RunnerConfig(cpus_per_trial=2), 4, "ray", 2),
        (RunnerConfig(cpus_per_trial=4), 6, "local", 1),
        (RunnerConfig(name="local"), 4, "local", 1),
        (RunnerConfig(name="ray", cpus_per_trial=2), 1, "ray", 1),
    ],
)
def test_auto_takes_ray_where_more_than_one_worker_fits(
    config: RunnerConfig, cpus: int, runner: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.capacity.cpu_count", lambda: cpus)
    assert pick_runner(config, "cpu") == runner
    assert workers(config, "cpu") == at_once


def test_a_cluster_is_for_ray() -> None:
    assert pick_runner(RunnerConfig(ray_address="10.0.0.1:6379"), "cpu") == "ray"


@pytest.mark.parametrize("config", [RunnerConfig(name="ray"), RunnerConfig(ray_address="10.0.0.1:6379")])
def test_a_gpu_that_is_named_by_its_number_is_not_for_ray(
    config: RunnerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.capacity.cpu_count", lambda: 8)
    assert pick_runner(RunnerConfig(), "cuda:1") == "local"
    with pytest.raises(RunnerError, match="--device cuda:1 names one GPU.*CUDA_VISIBLE_DEVICES=1 for this one alone"):
        pick_runner(config, "cuda:1")
