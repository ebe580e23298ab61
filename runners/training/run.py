"""TrainingRun: the arguments of one training besides its network, images and options; and the check of the options."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from pruning.base import NO_ACTION, Action
from runners.training.compute_format import ComputeFormat
from runners.training.schedule import WHOLE
from spaces.errors import SlimfrontError


class TrainingError(SlimfrontError):
    """A training that cannot start, or whose loss is no longer finite."""


@dataclass(frozen=True)
class TrainingRun:
    """Length, learning rate, seed and device of a training, and the functions that act on it.

    Attributes:
        epochs: length of the schedule, or of its part `span`; a fraction of an epoch becomes a last, shorter epoch.
        learning_rate: the peak of the schedule.
        seed: determines order, augmentation and dropout.
        device: where the network is trained.
        teacher: network on `device` whose logits are the target of distillation, where the options weigh it above 0.
        action: what a method does to the weights meanwhile.
        compute_format: precision and memory format; None takes the precision that the options declare, and measures
            nothing.
        span: the part of the schedule to train over, as fractions of it; for a method that changes the network or the
            loss between parts.
    """

    epochs: float
    learning_rate: float
    seed: int
    device: torch.device
    teacher: nn.Module | None = None
    action: Action = NO_ACTION
    compute_format: ComputeFormat | None = None
    span: tuple[float, float] = WHOLE

    def __post_init__(self) -> None:
        """Check the learning rate; raises TrainingError."""
        if not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning_rate is {self.learning_rate!r}; it must be above 0")
