"""How many trials this machine has room for."""

import pytest

from runners.capacity import fitting_workers, needed_gpus
from runners.config import RunnerConfig


@pytest.mark.parametrize(("cpus_per_trial", "workers"), [(1, 6), (2, 3), (4, 1), (7, 0)])
def test_trials_on_the_processor_share_its_cores(
    cpus_per_trial: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.capacity.cpu_count", lambda: 6)
    assert fitting_workers(RunnerConfig(cpus_per_trial=cpus_per_trial)) == workers


def test_workers_on_cuda_take_a_whole_device_each_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runners.capacity.cpu_count", lambda: 16)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert fitting_workers(RunnerConfig(), "cuda") == 1
    assert fitting_workers(RunnerConfig(gpus_per_trial=0.25), "cuda") == 4


def test_there_is_room_for_a_trial_of_one_core() -> None:
    assert fitting_workers(RunnerConfig()) >= 1


@pytest.mark.parametrize(
    ("device", "gpus_per_trial", "expected"),
    [("cpu", 0.0, 0.0), ("cuda:0", 0.0, 1.0), ("cuda", 0.5, 0.5), ("mps", 0.0, 0.0), ("auto", 0.0, 1.0)],
)
def test_a_trial_that_trains_on_cuda_reserves_a_gpu(
    device: str, gpus_per_trial: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert needed_gpus(RunnerConfig(gpus_per_trial=gpus_per_trial), device) == expected
