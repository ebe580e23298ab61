"""LatencyPredictor: widths that are predicted to meet a latency budget, and latencies predicted for samplers.

A prediction is multiplied by the model's own safety factor, so that few proposals miss, and by half of the interval
that readings aim at, because the upper end of the interval decides. It decides nothing itself: a network is accepted by
its measured latency (`search.latency.queue`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from runners.latency.prediction.model import LatencyModel
from runners.latency.timing import NARROW_WIDTH
from runners.trial import TrialResult
from search.latency.steps import on_cheap_side
from search.problem import Problem
from search.results.pareto import counted
from spaces.budget import Budget
from spaces.space import uniform_ratios
from spaces.widths import Widths

HEADROOM = 1.25  # over the FLOPs of uniform widths at the limit: good proportions have more FLOPs in the same time
FAR = 1.3  # times the limit; a network that is predicted above is not measured
NARROWINGS = 14


@dataclass(frozen=True)
class LatencyPredictor:
    """Predicts the latency of widths.

    Attributes:
        problem: the search, whose latency budget proposals are inside of by prediction.
    """

    model: LatencyModel
    problem: Problem

    def seconds_of(self, network: TrialResult) -> float | None:
        """Return the predicted latency of a network; None for one whose layers are not plain ones of its widths."""
        if network.widths is None or network.cost is None:
            return None
        if not network.cost.agrees(self.problem.space.cost(network.widths)):
            return None
        return self.model.predict(network.widths)

    def fit(self, width_ratios: Sequence[float], budgets: Sequence[Budget]) -> Widths:
        """Project width ratios into the budgets and, by lower FLOPs at the same ratios, into the predicted latency.

        Groups are then moved to the cheap side of steps of the latency, where these exist. Where not even the smallest
        network is predicted inside, it is returned: measuring decides.
        """
        counted_budgets = counted(budgets)

        def allowed(widths: Widths) -> bool:
            cost = self.problem.space.cost(widths)
            return all(budget.allows(cost) for budget in counted_budgets)

        def cheap(widths: Widths, inside: Callable[[Widths], bool]) -> Widths:
            return on_cheap_side(self.model, self.problem.space.variable, widths, inside)

        if math.isinf(self.problem.latency_limit):
            return self.problem.space.fit(width_ratios, budgets)
        # Where plain widths take longer than wider ones, the search for the limit is one among those on the cheap side.
        widths = self._fit(width_ratios, budgets, lambda one: cheap(one, allowed) if self.model.layers.block else one)
        return cheap(widths, lambda one: self._inside(one) and allowed(one)) if self._inside(widths) else widths

    def _fit(
        self, width_ratios: Sequence[float], budgets: Sequence[Budget], moved: Callable[[Widths], Widths]
    ) -> Widths:
        space = self.problem.space
        widths = moved(space.fit(width_ratios, budgets))
        if self._inside(widths):
            return widths
        others = [budget for budget in budgets if budget.quantity != "flops"]
        low, high, best = space.smallest_cost.flops, space.cost(widths).flops, space.smallest
        for _ in range(NARROWINGS):
            middle = math.isqrt(low * high)
            tried = moved(space.fit(width_ratios, [*others, Budget("flops", max(middle, low))]))
            if self._inside(tried):
                low, best = max(middle, low), tried
            else:
                high = middle
        return best

    def use(self, widths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the predicted share of the limit that widths of the variable groups use, shape (n,).

        Args:
            widths: shape (n, variable groups), which need not be whole.
        """
        order, variable = self.model.layers.names, [group.name for group in self.problem.space.variable]
        every = np.tile(np.array(self.model.dense, dtype=np.float64), (len(widths), 1))
        every[:, [order.index(name) for name in variable]] = widths
        return np.asarray(self.model.predict_vectors(every) * self._factor / self.problem.latency_limit)

    @cached_property
    def analytic(self) -> tuple[Budget, ...]:
        """The budgets on FLOPs and parameters for proposals; under a latency limit there is always one on FLOPs."""
        return self._with_flops(HEADROOM)

    def for_methods(self, budgets: Sequence[Budget]) -> tuple[Budget, ...]:
        """Return the budgets for a method that finds widths: at most the FLOPs of uniform widths at the limit."""
        least = {budget.quantity: budget for budget in self._with_flops(1.0)}
        return tuple(min(given, least.get(given.quantity, given), key=lambda budget: budget.limit) for given in budgets)

    def far_over(self, network: TrialResult) -> bool:
        """Return whether a network is predicted so far over the limit that measuring it would be lost time."""
        predicted = self.seconds_of(network)
        return predicted is not None and predicted > FAR * self.problem.latency_limit

    def _with_flops(self, headroom: float) -> tuple[Budget, ...]:
        kept = counted(self.problem.budgets)
        if math.isinf(self.problem.latency_limit):
            return kept
        uniform = self.problem.space.cost(self._uniform).flops
        flops = max(self.problem.space.smallest_cost.flops, math.floor(headroom * uniform))
        limits = [budget.limit for budget in kept if budget.quantity == "flops"]
        return (Budget("flops", min([flops, *limits])), *[budget for budget in kept if budget.quantity != "flops"])

    @cached_property
    def _uniform(self) -> Widths:
        return self.fit(uniform_ratios(self.problem.space), counted(self.problem.budgets))

    def _inside(self, widths: Widths) -> bool:
        return self.model.predict(widths) * self._factor <= self.problem.latency_limit

    @property
    def _factor(self) -> float:
        """How far the upper end of a reading may lie above the prediction."""
        return self.model.safety * (1 + NARROW_WIDTH / 2)
