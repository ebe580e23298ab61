"""The collapse plan: the centripetal strength at which the filters of a cluster become equal in time.

Within a cluster, a filter is the cluster mean plus a deviation. Centripetal SGD (Ding et al., arXiv 1904.03837) changes
the deviation by weight decay and centripetal strength alone, without a gradient of the loss. Momentum included, the
deviation after a step is its first value times a number that only the learning rates determine. The deviation at the
end of a training can therefore be computed before the training starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pruning.base import TrainingPlan

COLLAPSED = 1e-6  # merging counts as lossless up to this largest deviation, as a share of the largest value
TARGET_DEVIATION = 2e-7  # planned share of a deviation that remains; below COLLAPSED, because rounding adds to it
SETTLING_STEPS = 132  # steps in which running statistics of momentum 0.1 lose their differences: 0.9 ** 132 < 1e-6
CANDIDATES = 64  # strengths that are tried, evenly spaced on a log scale


@dataclass(frozen=True)
class CollapsePlan:
    """How the deviations of filters from their cluster means are removed.

    Attributes:
        epsilon: centripetal strength, which acts through the gradient; 0 if deviations are removed directly.
        direct_share: share of each deviation that every step removes past the optimiser; 0 with an `epsilon`.
        steps: number of steps after which the collapse is complete by plan.
        residual: share of a deviation that then remains, in the kind of tensor where it is largest.
    """

    epsilon: float
    direct_share: float
    steps: int
    residual: float


def deviation_left(plan: TrainingPlan, strengths: ArrayLike, steps: int) -> NDArray[np.float64]:
    """Return the share of a deviation that remains after `steps` steps under constant strengths, shape (n,).

    The share is infinite for strengths under which deviations grow without bound.

    Args:
        strengths: weight decay plus epsilon, shape (n,).
    """
    strength = np.asarray(strengths, dtype=np.float64)
    left, velocity = np.ones_like(strength), np.zeros_like(strength)
    with np.errstate(over="ignore", invalid="ignore"):
        for rate in plan.rates[:steps]:
            pull = strength * left
            velocity = plan.momentum * velocity + pull
            left = left - rate * (pull + plan.momentum * velocity if plan.nesterov else velocity)
    return np.where(np.isfinite(left), left, np.inf)


def largest_strength(plan: TrainingPlan) -> float:
    """Return the strength above which momentum makes deviations oscillate around zero at the peak learning rate."""
    m = plan.momentum
    bound = ((1 - m) / (1 + m)) ** 2 if plan.nesterov else (1 - m**0.5) ** 2
    return bound / max(plan.rates)


def plan_to_deadline(plan: TrainingPlan, epsilon: float, factors: Sequence[float], deadline: float) -> CollapsePlan:
    """Plan with the smallest strength that removes all deviations in time.

    The strength is at least `epsilon`, and at most one at which momentum makes no deviation oscillate. If even that is
    too weak (with momentum 0.9, in trainings of under about 400 steps), or leaves running statistics no time to
    settle, every step removes the same share of all deviations, past the optimiser.

    Args:
        plan: of a training of at least one step.
        epsilon: smallest centripetal strength.
        factors: strengths of the kinds of tensors, relative to epsilon.
        deadline: share of the steps after which filters are to be equal.
    """
    steps = max(1, round(deadline * len(plan.rates)))
    settled = min(steps, len(plan.rates) - SETTLING_STEPS)
    if settled > 0 and min(factors) > 0:
        bound = (largest_strength(plan) - plan.weight_decay) / max(factors)
        candidates = np.geomspace(epsilon, max(bound, epsilon), CANDIDATES)
        left = np.abs(deviation_left(plan, candidates * min(factors), settled))
        enough = np.flatnonzero(left <= TARGET_DEVIATION)
        if len(enough):
            return CollapsePlan(float(candidates[enough[0]]), 0.0, settled, float(left[enough[0]]))
    return CollapsePlan(0.0, 1 - TARGET_DEVIATION ** (1 / steps), steps, TARGET_DEVIATION)


def plan_with_fixed_epsilon(plan: TrainingPlan, epsilon: float, factors: Sequence[float]) -> CollapsePlan:
    """Plan with epsilon as it is; the residual is that at the end of the training."""
    left = np.abs(deviation_left(plan, epsilon * np.asarray(factors), len(plan.rates)))
    return CollapsePlan(epsilon, 0.0, len(plan.rates), float(left.max(initial=0.0)))
