"""Where latency is limited or compared: widths that are predicted inside, and what a trial may be proposed for.

A prediction is multiplied by the model's own safety factor, so that few proposals miss. It decides nothing: a network
is accepted by what is measured of it (`search.latency.queue`).
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from configs.schema import RunConfig
from runners.base import AUTO_DEVICE, NO_DEVICE
from runners.latency.engines import LatencyError
from runners.latency.model import LatencyModel
from runners.trial import TrialResult
from search.results.pareto import LATENCY, counted
from spaces.budget import Budget
from spaces.errors import BudgetError
from spaces.space import SearchSpace, uniform_ratios
from spaces.widths import Widths

HEADROOM = 1.25  # over the FLOPs of uniform widths at the limit: good proportions have more FLOPs in the same time
FAR = 1.3  # times the limit; what is predicted above is not measured
BUSY = 4  # times as long as alone: what a brief timing beside other processes takes at most
NARROWINGS = 14


@dataclass(frozen=True)
class Guide:
    """Predicts latency for a study.

    Attributes:
        limit: seconds that the upper end of a measured interval must hold; infinite without a latency budget.
        budgets: of the user, absolute.
    """

    model: LatencyModel
    space: SearchSpace
    budgets: tuple[Budget, ...]
    limit: float = math.inf

    def seconds(self, widths: Widths) -> float:
        """Return the predicted latency."""
        return self.model.predict(widths)

    def told(self, result: TrialResult) -> float:
        """Return what a sampler is told of a result along a latency axis: predicted, since it is measured later."""
        return self.seconds(result.widths or Widths({}))

    def seconds_of(self, network: TrialResult) -> float | None:
        """Return the predicted latency of a network; None for one that is not merely narrow."""
        if network.widths is None or network.cost != self.space.cost(network.widths):
            return None
        return self.seconds(network.widths)

    def fit(self, width_ratios: Sequence[float], budgets: Sequence[Budget]) -> Widths:
        """Project a point into the budgets and, by lower FLOPs at its proportions, into the predicted latency.

        Where not even the smallest network is predicted inside, that one is returned: measuring decides.
        """
        widths = self.space.fit(width_ratios, budgets)
        if self._inside(widths):
            return widths
        others = [budget for budget in budgets if budget.quantity != "flops"]
        low, high, best = self.space.smallest_cost.flops, self.space.cost(widths).flops, self.space.smallest
        for _ in range(NARROWINGS):
            middle = math.isqrt(low * high)
            tried = self.space.fit(width_ratios, [*others, Budget("flops", max(middle, low))])
            if self._inside(tried):
                low, best = max(middle, low), tried
            else:
                high = middle
        return best

    def use(self, widths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of the limit that widths of the variable groups are predicted to use, shape (n,).

        Args:
            widths: shape (n, variable groups), which need not be whole.
        """
        order, variable = self.model.layers.names, [group.name for group in self.space.variable]
        every = np.tile(np.array(self.model.dense, dtype=np.float64), (len(widths), 1))
        every[:, [order.index(name) for name in variable]] = widths
        return np.asarray(self.model.predict_vectors(every) * self.model.safety / self.limit)

    @cached_property
    def analytic(self) -> tuple[Budget, ...]:
        """The budgets on FLOPs and parameters that proposals keep: under a latency limit there is one on FLOPs."""
        return self._with_flops(HEADROOM)

    def for_methods(self, budgets: Sequence[Budget]) -> tuple[Budget, ...]:
        """Return the budgets for a method that finds widths itself, which no prediction holds: as uniform ones cost."""
        least = {budget.quantity: budget for budget in self._with_flops(1.0)}
        return tuple(min(each, least.get(each.quantity, each), key=lambda budget: budget.limit) for each in budgets)

    def far_over(self, network: TrialResult) -> bool:
        """Whether a network is predicted so far over the limit that measuring it would be time lost."""
        predicted = self.seconds_of(network)
        return predicted is not None and predicted > FAR * self.limit

    def _with_flops(self, headroom: float) -> tuple[Budget, ...]:
        kept = counted(self.budgets)
        if math.isinf(self.limit):
            return kept
        uniform = self.space.cost(self._uniform).flops
        flops = max(self.space.smallest_cost.flops, math.floor(headroom * uniform))
        limits = [budget.limit for budget in kept if budget.quantity == "flops"]
        return (Budget("flops", min([flops, *limits])), *[budget for budget in kept if budget.quantity != "flops"])

    @cached_property
    def _uniform(self) -> Widths:
        return self.fit(uniform_ratios(self.space), counted(self.budgets))

    def _inside(self, widths: Widths) -> bool:
        return self.seconds(widths) * self.model.safety <= self.limit


def latency_counts(config: RunConfig, budgets: Sequence[Budget]) -> bool:
    """Whether latency is limited or an axis, so that networks are measured during the search."""
    return config.objective.endswith(LATENCY) or math.isfinite(latency_limit(budgets))


def with_latency_device(config: RunConfig, budgets: Sequence[Budget], device: torch.device) -> RunConfig:
    """Return the config with the device to measure on in place of "auto": that of the training.

    Raises:
        LatencyError: latency counts, and nothing is to be measured.
    """
    if latency_counts(config, budgets) and not config.latency.measures:
        raise LatencyError(
            f"--latency-device {NO_DEVICE} measures nothing, and a latency budget or --objective accuracy,latency "
            "needs what networks measure; leave it out, or name a device such as cpu:1thread"
        )
    if config.latency.device != AUTO_DEVICE:
        return config
    found = {"cpu": "cpu:1thread", "cuda": f"cuda:{device.index or 0}"}.get(device.type, device.type)
    return dataclasses.replace(config, latency=dataclasses.replace(config.latency, device=found))


def latency_limit(budgets: Sequence[Budget]) -> float:
    """Return the seconds that the budgets allow; infinite when none limits latency."""
    return min([budget.limit for budget in budgets if budget.quantity == "latency"], default=math.inf)


def check_smallest(limit: float, seconds: float, interval: tuple[float, float], where: str) -> None:
    """Compare a latency limit with what the smallest network measures.

    Args:
        where: device and batch size in words.

    Raises:
        BudgetError: no network of the space can be expected to meet the limit.
    """
    if limit < seconds:
        low, high = interval
        raise BudgetError(
            f"budget {Budget('latency', limit)} is under what the smallest network of this space measures on {where}: "
            f"{1e3 * seconds:.4g} ms ({1e3 * low:.4g} to {1e3 * high:.4g}); raise the budget, or lower --floor or "
            "--divisor"
        )


def check_smallest_briefly(limit: float, seconds: float, where: str) -> None:
    """Compare a latency limit with a timing of the smallest network on a machine too busy to measure it.

    Raises:
        BudgetError: the limit is so far under that timing that the others on the machine cannot be the reason.
    """
    if limit < seconds / BUSY:
        raise BudgetError(
            f"budget {Budget('latency', limit)} is far under what the smallest network of this space takes on {where}, "
            f"about {1e3 * seconds:.4g} ms (this machine is too busy to measure it); raise the budget, or lower "
            "--floor or --divisor"
        )
