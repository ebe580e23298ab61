"""The devices of this machine, by name."""

import torch

from runners.training.run import TrainingError


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" takes CUDA, then MPS, then the processor.

    Raises:
        TrainingError: no such device here.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present[:0] = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(present[0])
    if name not in present:
        raise TrainingError(f"device {name!r} is not available here; this machine has {', '.join(present)} (or auto)")
    return torch.device(name)
