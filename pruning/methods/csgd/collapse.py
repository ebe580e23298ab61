"""The collapse budget: how strongly filters must be pulled together to be equal in the steps at hand.

Inside a cluster a filter is its mean plus a deviation, and centripetal SGD moves the deviation by weight decay and
centripetal strength alone: no gradient enters. Momentum included, every deviation is its first value times one number
per step, which the learning rates determine. So the end of a training can be computed before it starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pruning.base import TrainingPlan

COLLAPSED = 1e-6  # largest deviation, as a share of the largest value, up to which merging is called lossless
AIM = 2e-7  # what is left by plan, below COLLAPSED because rounding adds its part
SETTLING = 132  # steps after which running statistics of momentum 0.1 have forgotten what differed: 0.9 ** 132 < 1e-6
CANDIDATES = 64  # strengths that are tried, evenly on a log scale


@dataclass(frozen=True)
class Pull:
    """How deviations are removed.

    Attributes:
        epsilon: centripetal strength, added to the gradient; 0 where deviations are removed directly.
        direct: share of each deviation that a step removes without going through the optimiser; 0 with `epsilon`.
        steps: after which the collapse is planned to be complete.
        left: what is then left of a deviation, as a share; of the slowest kind of tensor.
    """

    epsilon: float
    direct: float
    steps: int
    left: float


def deviation_left(plan: TrainingPlan, strengths: ArrayLike, steps: int) -> NDArray[np.float64]:
    """Return what is left of a deviation after some steps under constant strengths (decay plus epsilon), as shares.

    Strengths under which deviations grow without bound leave infinity.

    Args:
        plan: learning rates and momentum.
        strengths: shape (n,).
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
    """Return the strength above which momentum makes deviations swing through zero at the peak learning rate."""
    m = plan.momentum
    bound = ((1 - m) / (1 + m)) ** 2 if plan.nesterov else (1 - m**0.5) ** 2
    return bound / max(plan.rates)


def budget_pull(plan: TrainingPlan, epsilon: float, factors: Sequence[float], deadline: float) -> Pull:
    """Choose the weakest pull that makes all deviations vanish in time.

    At least `epsilon`; stronger where that is too slow, up to what momentum bears without swinging. Where even that
    is too slow (with momentum 0.9 under some 400 steps), or leaves running statistics no time to settle, the same
    share of every deviation is removed at every step, past the optimiser.

    Args:
        plan: the training at hand, of at least one step.
        epsilon: the least centripetal strength.
        factors: strengths of the kinds of tensors, relative to epsilon.
        deadline: share of the steps after which filters are to be equal.
    """
    steps = max(1, round(deadline * len(plan.rates)))
    settled = min(steps, len(plan.rates) - SETTLING)
    if settled > 0 and min(factors) > 0:
        bound = (largest_strength(plan) - plan.weight_decay) / max(factors)
        candidates = np.geomspace(epsilon, max(bound, epsilon), CANDIDATES)
        left = np.abs(deviation_left(plan, candidates * min(factors), settled))
        enough = np.flatnonzero(left <= AIM)
        if len(enough):
            return Pull(float(candidates[enough[0]]), 0.0, settled, float(left[enough[0]]))
    return Pull(0.0, 1 - AIM ** (1 / steps), steps, AIM)


def fixed_pull(plan: TrainingPlan, epsilon: float, factors: Sequence[float]) -> Pull:
    """Take epsilon as it is, and say what it will leave at the end."""
    left = np.abs(deviation_left(plan, epsilon * np.asarray(factors), len(plan.rates)))
    return Pull(epsilon, 0.0, len(plan.rates), float(left.max(initial=0.0)))
