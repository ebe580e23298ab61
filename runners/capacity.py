"""How many trials this machine has room for."""

from joblib import cpu_count

from runners.config import RunnerConfig


def fitting_workers(config: RunnerConfig, device: str = "cpu") -> int:
    """Return how many trials this machine has cores for and, where a trial needs GPUs, GPUs for; may be 0.

    The cores are those that this process may use: its affinity and the quota of its container count, not the host.
    """
    count: int = cpu_count() // config.cpus_per_trial
    gpus = needed_gpus(config, device)
    if gpus:
        import torch

        count = min(count, int(torch.cuda.device_count() / gpus + 1e-9))
    return count


def needed_gpus(config: RunnerConfig, device: str) -> float:
    """Return the GPUs that a trial reserves; Ray hides every GPU from a worker that has reserved none.

    Args:
        device: as in `TrainConfig`.
    """
    if config.gpus_per_trial or device == "cpu":
        return config.gpus_per_trial
    import torch

    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return 1.0 if cuda else 0.0
