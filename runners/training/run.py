"""TrainingRun: the arguments of one training besides its network, images and options; and the check of the options."""

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
        hook: called as hook(net, step) when the gradients are final, before the step of the optimiser.
        reshape: called as reshape(net, momentum by parameter name) after every epoch; training continues with the
            network and momentum that it returns, or with the present ones if it returns None.
        compute_format: numerical precision and memory format; None measures them once per process and kind of network
            (`runners.training.compute_format`).
        span: the part of the schedule to train over, as fractions of it; for a method that changes the network or the
            loss between parts.
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
