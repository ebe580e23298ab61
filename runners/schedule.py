"""Learning-rate schedules, and what can be known of a training before it starts."""

import math

from pruning.base import TrainingPlan
from runners.base import TrainConfig
from runners.splits import Split

WHOLE = (0.0, 1.0)  # of a schedule
SCHEDULES = ("one_cycle", "cosine", "constant")
WARM_UP_SHARE = 0.25  # of one_cycle's steps
LOWEST_FACTOR = 0.02  # of the peak rate, at both ends of one_cycle


def plan_training(split: Split, config: TrainConfig, epochs: int, learning_rate: float) -> TrainingPlan:
    """Return what `fit` does with these arguments."""
    steps = epochs * max(1, len(split) // config.batch_size)
    rates = (learning_rate * schedule_factor(config.schedule, step / steps) for step in range(steps))
    return TrainingPlan(tuple(rates), config.momentum, config.momentum > 0, config.weight_decay)


def steps_of(epochs: float, per_epoch: int) -> int:
    """Return how many steps `epochs` are, at least one of any part of an epoch."""
    return max(round(epochs * per_epoch), math.ceil(min(epochs, 1)))


def along(span: tuple[float, float], progress: float) -> float:
    """Return where in the whole schedule `progress` in [0, 1) through a part of it is."""
    return span[0] + (span[1] - span[0]) * progress


def travel(
    config: TrainConfig, *, epochs: float, per_epoch: int, learning_rate: float, span: tuple[float, float] = WHOLE
) -> float:
    """Return how far a weight would move in `epochs` under a constant gradient of 1, momentum included."""
    total = steps_of(epochs, per_epoch)
    rates = sum(schedule_factor(config.schedule, along(span, step / total)) for step in range(total))
    return learning_rate * rates / (1 - config.momentum)


def schedule_factor(schedule: str, progress: float) -> float:
    """Return the share of the peak rate at `progress` in [0, 1) of all steps."""
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if progress < WARM_UP_SHARE:
        return LOWEST_FACTOR + (1 - LOWEST_FACTOR) * progress / WARM_UP_SHARE
    fallen = (progress - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)
    return LOWEST_FACTOR + (1 - LOWEST_FACTOR) * 0.5 * (1 + math.cos(math.pi * fallen))
