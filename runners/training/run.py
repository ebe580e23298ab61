"""Course: what one training is, apart from its net, images and options; and which options it refuses."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from pruning.base import Reshape, StepHook
from runners.config import TrainConfig, schedule_problem
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


def check_settings(config: TrainConfig, learning_rate: float) -> None:
    """Raise a TrainingError for the first setting that is out of range."""
    rules = (
        ("batch_size", config.batch_size, config.batch_size >= 1, "at least 1"),
        ("learning_rate", learning_rate, 0 < learning_rate < math.inf, "above 0"),
        ("momentum", config.momentum, 0 <= config.momentum < 1, "in [0, 1)"),
        ("weight_decay", config.weight_decay, 0 <= config.weight_decay < math.inf, "at least 0"),
        ("bias_lr_mult", config.bias_lr_mult, 0 < config.bias_lr_mult < math.inf, "above 0"),
        ("label_smoothing", config.label_smoothing, 0 <= config.label_smoothing < 1, "in [0, 1)"),
        ("mixup", config.mixup, 0 <= config.mixup < math.inf, "at least 0"),
        ("clip_grad_norm", config.clip_grad_norm, 0 <= config.clip_grad_norm < math.inf, "at least 0"),
        ("distill_weight", config.distill_weight, 0 <= config.distill_weight <= 1, "in [0, 1]"),
        ("distill_temperature", config.distill_temperature, 0 < config.distill_temperature < math.inf, "above 0"),
        ("precision", config.precision, config.precision in ("auto", "float32"), "auto or float32"),
    )
    for name, value, holds, rule in rules:
        if not holds:
            raise TrainingError(f"{name} is {value!r}; it must be {rule}")
    problem = schedule_problem(config)
    if problem:
        raise TrainingError(problem)
