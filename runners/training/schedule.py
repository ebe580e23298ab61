"""Learning-rate schedules, and what can be known of a training before it starts."""

import dataclasses
import math

from pruning.base import TrainingPlan
from runners.config import TrainConfig
from runners.data.splits import Split

WHOLE = (0.0, 1.0)  # of a schedule
WARM_UP_SHARE = 0.25  # of one_cycle's steps
LOWEST_FACTOR = 0.02  # of the peak rate, at both ends of one_cycle
SAME_EPOCH = 1e-9  # epochs reached by adding up shares of them


def plan_training(split: Split, config: TrainConfig, epochs: int, learning_rate: float) -> TrainingPlan:
    """Return what `fit` does with these arguments."""
    steps = epochs * max(1, len(split) // config.batch_size)
    rates = (learning_rate * schedule_factor(config, step / steps, epochs) for step in range(steps))
    looks_ahead = config.nesterov and config.momentum > 0
    return TrainingPlan(tuple(rates), config.momentum, looks_ahead, config.weight_decay, config.bias_lr_mult)


def shortened(config: TrainConfig, epochs: int) -> TrainConfig:
    """Return a training of so many epochs whose rate takes the same course as that of all epochs, in less time."""
    share = epochs / config.epochs if epochs and config.epochs else 1.0
    milestones = tuple(share * each for each in config.milestones)
    return dataclasses.replace(
        config, epochs=epochs, milestones=milestones, warmup_epochs=share * config.warmup_epochs
    )


def steps_of(epochs: float, per_epoch: int) -> int:
    """Return how many steps `epochs` are, at least one of any part of an epoch."""
    return max(round(epochs * per_epoch), math.ceil(min(epochs, 1)))


def along(span: tuple[float, float], progress: float) -> float:
    """Return where in the whole schedule `progress` in [0, 1) through a part of it is."""
    return span[0] + (span[1] - span[0]) * progress


def whole_epochs(epochs: float, span: tuple[float, float]) -> float:
    """Return the length of the schedule of which `epochs` are the part `span`."""
    share = span[1] - span[0]
    return epochs / share if share > 0 else epochs


def integrated_learning_rate(
    config: TrainConfig, *, epochs: float, per_epoch: int, learning_rate: float, span: tuple[float, float] = WHOLE
) -> float:
    """Return how far a weight would move in `epochs` under a constant gradient of 1, momentum included."""
    total, whole = steps_of(epochs, per_epoch), whole_epochs(epochs, span)
    rates = sum(schedule_factor(config, along(span, step / total), whole) for step in range(total))
    return learning_rate * rates / (1 - config.momentum)


def schedule_factor(config: TrainConfig, progress: float, epochs: float) -> float:
    """Return the share of the peak rate at `progress` in [0, 1) of a schedule over so many epochs.

    A warm-up is linear from 0. What a cosine has to fall begins after it; milestones count from the first epoch.
    """
    epoch = progress * epochs
    if epoch < config.warmup_epochs:
        return epoch / config.warmup_epochs
    if config.lr_scheduler == "constant":
        return 1.0
    if config.lr_scheduler == "multistep":
        passed = sum(milestone <= epoch + SAME_EPOCH for milestone in config.milestones)
        return float(config.lr_gamma**passed)
    if config.lr_scheduler == "cosine":
        if config.warmup_epochs:
            progress = (epoch - config.warmup_epochs) / (epochs - config.warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * progress))
    if progress < WARM_UP_SHARE:
        return LOWEST_FACTOR + (1 - LOWEST_FACTOR) * progress / WARM_UP_SHARE
    fallen = (progress - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)
    return LOWEST_FACTOR + (1 - LOWEST_FACTOR) * 0.5 * (1 + math.cos(math.pi * fallen))
