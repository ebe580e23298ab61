"""Learning-rate schedules, and the plan of a training that follows from them."""

import dataclasses
import math

from pruning.base import TrainingPlan
from runners.config import TrainConfig
from runners.data.splits import Split

WHOLE = (0.0, 1.0)  # the span of a whole schedule
WARM_UP_SHARE = 0.25  # of the steps of one_cycle
LOWEST_FACTOR = 0.02  # of the peak rate, at both ends of one_cycle
SAME_EPOCH = 1e-9  # tolerance in epochs, for rounding errors of sums of fractions


def plan_training(split: Split, config: TrainConfig, epochs: int, learning_rate: float) -> TrainingPlan:
    """Return the learning rates and the optimiser settings that `fit` uses for these arguments."""
    steps = epochs * max(1, len(split) // config.batch_size)
    rates = (learning_rate * schedule_factor(config, step / steps, epochs) for step in range(steps))
    nesterov = config.nesterov and config.momentum > 0
    return TrainingPlan(tuple(rates), config.momentum, nesterov, config.weight_decay, config.bias_lr_mult)


def segment_config(config: TrainConfig, epochs: int) -> TrainConfig:
    """Return the options of a training segment: its schedule is that of the whole training, scaled to `epochs`."""
    share = epochs / config.epochs if epochs and config.epochs else 1.0
    milestones = tuple(share * milestone for milestone in config.milestones)
    return dataclasses.replace(config, epochs=epochs, milestones=milestones, warmup_epochs=share * config.warmup_epochs)


def count_steps(epochs: float, per_epoch: int) -> int:
    """Return the number of steps in `epochs`, at least 1 unless `epochs` is 0."""
    return max(round(epochs * per_epoch), math.ceil(min(epochs, 1)))


def schedule_progress(span: tuple[float, float], progress: float) -> float:
    """Return the progress in [0, 1) through the whole schedule, given the progress through its part `span`."""
    return span[0] + (span[1] - span[0]) * progress


def schedule_epochs(epochs: float, span: tuple[float, float]) -> float:
    """Return the epochs of the whole schedule whose part `span` lasts `epochs`."""
    share = span[1] - span[0]
    return epochs / share if share > 0 else epochs


def integrated_learning_rate(
    config: TrainConfig, *, epochs: float, per_epoch: int, learning_rate: float, span: tuple[float, float] = WHOLE
) -> float:
    """Return the sum of the step learning rates over `epochs`, divided by (1 - momentum)."""
    total, whole = count_steps(epochs, per_epoch), schedule_epochs(epochs, span)
    rates = sum(schedule_factor(config, schedule_progress(span, step / total), whole) for step in range(total))
    return learning_rate * rates / (1 - config.momentum)


def schedule_factor(config: TrainConfig, progress: float, epochs: float) -> float:
    """Return the fraction of the peak rate at `progress` in [0, 1) through a schedule of `epochs`.

    A warm-up rises linearly from 0. A cosine starts to fall after it; milestones count from the first epoch.
    """
    epoch = progress * epochs
    if epoch < config.warmup_epochs:
        return epoch / config.warmup_epochs
    if config.lr_scheduler == "constant":
        return 1.0
    if config.lr_scheduler == "multistep":
        reached = sum(milestone <= epoch + SAME_EPOCH for milestone in config.milestones)
        return float(config.lr_gamma**reached)
    if config.lr_scheduler == "cosine":
        if config.warmup_epochs:
            progress = (epoch - config.warmup_epochs) / (epochs - config.warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * progress))
    if progress < WARM_UP_SHARE:
        return LOWEST_FACTOR + (1 - LOWEST_FACTOR) * progress / WARM_UP_SHARE
    fall = (progress - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)
    return LOWEST_FACTOR + (1 - LOWEST_FACTOR) * 0.5 * (1 + math.cos(math.pi * fall))
