"""What a runner needs from above, and what runs trials."""

import dataclasses
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from runners.config import RunnerConfig
from runners.trial import EpochReport, Trial, TrialResult
from spaces.errors import SlimfrontError
from spaces.registry import Registry

if TYPE_CHECKING:
    from runners.evaluation.evaluate import SearchContext

RUNNERS = Registry(
    "runner",
    {
        "local": "runners.local:LocalRunner",
        "ray": "runners.ray.runner:RayRunner",
        "simulated": "runners.simulated.runner:SimulatedRunner",
    },
)


class RunnerError(SlimfrontError):
    """Workers that cannot be had: settings out of range, no such cluster, no room for a single trial."""


# A running trial: yields a report per epoch, is sent False to end there, returns its result.
Evaluation = Generator[EpochReport, bool | None, TrialResult]
Evaluator = Callable[[Trial, "SearchContext"], Evaluation]


def default_evaluator() -> Evaluator:
    """Return `runners.evaluation.evaluate.evaluate`; it loads torch, which the command line's help must not wait for."""
    from runners.evaluation.evaluate import evaluate

    return evaluate


class AskTell(Protocol):
    """Where trials come from and where results go; implemented above (search.Study)."""

    def ask(self) -> Trial | None:
        """Return the next trial, or None when there are no more.

        While trials run, None may mean none yet: a runner asks again after it has told one.
        """
        ...

    def report(self, report: EpochReport) -> bool:
        """Take an intermediate report; return whether the trial goes on."""
        ...

    def tell(self, result: TrialResult) -> None:
        """Take a finished trial, of whatever state."""
        ...


class Runner(Protocol):
    """Takes trials from an AskTell until it has no more, evaluates them, and tells the results."""

    def run(self, ask_tell: AskTell, search_context: "SearchContext") -> None:
        """Return when every trial is told. A KeyboardInterrupt passes through after workers are stopped."""
        ...


def pick_runner(config: RunnerConfig, device: str = "auto") -> str:
    """Return the runner's name: "auto" becomes "ray" for a cluster or where more than one worker fits, else "local".

    Args:
        device: as in `TrainConfig`; workers that train on CUDA share its devices.
    """
    if config.name != "auto":
        return config.name
    return "ray" if config.ray_address or fitting_workers(config, device) > 1 else "local"


def workers(config: RunnerConfig, device: str = "auto") -> int:
    """Return how many trials run at once; for a cluster this connects to it."""
    if pick_runner(config, device) != "ray":
        return 1
    if config.ray_address:
        # The only file that may import ray, and only when there is a cluster to ask.
        from runners.ray.runner import cluster_workers

        return cluster_workers(dataclasses.replace(config, gpus_per_trial=needed_gpus(config, device)))
    return max(1, fitting_workers(config, device))


def fitting_workers(config: RunnerConfig, device: str = "cpu") -> int:
    """Return how many trials this machine has cores, and where they need them GPUs, for."""
    count = available_cpus() // config.cpus_per_trial
    gpus = needed_gpus(config, device)
    if gpus:
        import torch

        count = min(count, int(torch.cuda.device_count() / gpus + 1e-9))
    return count


def needed_gpus(config: RunnerConfig, device: str) -> float:
    """Return the GPUs that a trial reserves: a worker for which none is reserved would not see any."""
    if config.gpus_per_trial or device == "cpu":
        return config.gpus_per_trial
    import torch

    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return 1.0 if cuda else 0.0


def available_cpus() -> int:
    """Return how many cores this process may use: affinity and the quota of its container, not what the host has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2 here, or "max": no quota
        return cores
