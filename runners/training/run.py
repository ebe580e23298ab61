"""Course: what one training is, apart from its net, images and options; and which options it refuses."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from pruning.base import Reshape, StepHook
from runners.training.compute_format import ComputeFormat
from runners.training.schedule import WHOLE
from spaces.errors import SlimfrontError


class TrainingError(SlimfrontError):
    """Training that cannot start or has gone astray."""


@dataclass(frozen=True)
class TrainingRun:
    """How long and how fast to train, from which seed, where, and what acts on the training.

    Attributes:
        epochs: length of the schedule, or of the part of it that `span` is; what exceeds a whole number makes a last,
            shorter epoch.
        learning_rate: the peak of the schedule.
        seed: determines order, augmentation and dropout.
        device: where to train.
        teacher: net whose logits are to be met, where the options give distillation a weight; on `device`.
        hook: called as hook(net, step) when the gradients are final, before the optimiser's step.
        reshape: called as reshape(net, momentum by parameter name) after every epoch; training goes on with the net and
            momentum that it returns, unless that is None.
        fast: number and memory format; None measures once per kind of net and process (see `runners.training.compute_format`).
        span: the part of the schedule to go through, for training that changes its net or terms on the way.
    """

    epochs: float
    learning_rate: float
    seed: int
    device: torch.device
    teacher: nn.Module | None = None
    hook: StepHook | None = None
    reshape: Reshape | None = None
    compute_format: ComputeFormat | None = None
    span: tuple[float, float] = WHOLE

    def __post_init__(self) -> None:
        """Check the learning rate; raises TrainingError."""
        if not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning_rate is {self.learning_rate!r}; it must be above 0")
