"""Which devices have float64."""

import torch


def has_float64(device: torch.device) -> bool:
    """Return whether tensors on a device may be float64; those of Apple's MPS may not."""
    return device.type != "mps"
