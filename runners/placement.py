"""Where the trials of a search run: which runner takes them, and how many run at once."""

import dataclasses

from runners.base import RunnerError
from runners.capacity import fitting_workers, needed_gpus
from runners.config import RunnerConfig


def pick_runner(config: RunnerConfig, device: str = "auto") -> str:
    """Return the runner's name: "auto" becomes "ray" for a cluster or where more than one worker fits, else "local".

    Args:
        device: as in `TrainConfig`; workers that train on CUDA share its devices. On one that is named by its number
            trials are trained one after the other.

    Raises:
        RunnerError: Ray is asked for, which gives out GPUs by itself, and one is named.
    """
    pinned = device.startswith("cuda:")
    if pinned and (config.name == "ray" or config.cluster):
        raise RunnerError(
            f"--device {device} names one GPU, and trials on Ray get theirs from Ray; take --device cuda, with "
            f"CUDA_VISIBLE_DEVICES={device.removeprefix('cuda:')} for this one alone"
        )
    if config.name != "auto":
        return config.name
    if pinned:
        return "local"
    return "ray" if config.cluster or fitting_workers(config, device) > 1 else "local"


def workers(config: RunnerConfig, device: str = "auto") -> int:
    """Return how many trials run at once; for a cluster this connects to it.

    Args:
        device: as in `TrainConfig`.

    Raises:
        RunnerError: no such cluster.
    """
    if pick_runner(config, device) != "ray":
        return 1
    if config.cluster:
        from runners.ray.runner import cluster_workers  # Ray is loaded only when there is a cluster to ask

        return cluster_workers(dataclasses.replace(config, gpus_per_trial=needed_gpus(config, device)))
    return max(1, fitting_workers(config, device))
