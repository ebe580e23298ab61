"""Projection of width ratios onto legal widths that meet hard budgets."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spaces.budget import Budget
from spaces.cost import CostModel
from spaces.errors import BudgetError, SpaceError
from spaces.groups import ChannelGroup
from spaces.widths import Widths

MIN_USAGE = 0.97  # share of the tightest budget below which exchanges between groups are tried
MAX_EXCHANGES = 8
MAX_ENUMERATED = 50_000  # a space of at most so many candidates is enumerated


class Projection:
    """The algorithm behind `SearchSpace.fit`.

    It counts widths in levels: the level of a group is the number of divisor steps above its smallest width.
    """

    def __init__(self, groups: Sequence[ChannelGroup], cost_model: CostModel) -> None:
        self._names = [group.name for group in groups]
        self._cost_model = cost_model
        self._dense = np.array([group.width for group in groups], dtype=np.float64)
        self._lowest = np.array([group.lowest for group in groups], dtype=np.int64)
        self._ceiling = np.array([group.ceiling for group in groups], dtype=np.int64)
        self._divisor = np.array([group.divisor for group in groups], dtype=np.int64)
        self._steps = np.array([group.steps for group in groups], dtype=np.int64)

    def fit(self, width_ratios: NDArray[np.float64], budgets: Sequence[Budget]) -> Widths:
        """Project width ratios, shape (groups,), onto legal widths, as `SearchSpace.fit` describes."""
        if width_ratios.shape != self._dense.shape or not ((width_ratios >= 0) & (width_ratios <= 1)).all():
            raise SpaceError(f"width ratios {width_ratios.tolist()} are not {len(self._dense)} numbers in [0, 1]")
        limits = self._limits(budgets)
        if self._usage(self._steps[None], limits)[0] <= 1:
            return self._widths(self._steps)
        low, high = 0.0, 1.0 / max(float(width_ratios[width_ratios > 0].min(initial=1.0)), 1e-6)
        while high - low > 1e-6 * high:
            middle = (low + high) / 2
            fits = self._usage(self._levels(middle * width_ratios)[None], limits)[0] <= 1
            low, high = (middle, high) if fits else (low, middle)
        levels = self._fill(self._levels(low * width_ratios), width_ratios, limits)
        return self._widths(self._use_up(levels, width_ratios, limits))

    def _limits(self, budgets: Sequence[Budget]) -> tuple[float, float]:
        limits = {"flops": float("inf"), "params": float("inf")}
        smallest = self._cost_model(self._widths(np.zeros_like(self._steps)))
        for budget in budgets:
            if budget.quantity not in limits:
                continue
            least = getattr(smallest, budget.quantity)
            if budget.limit < least:
                raise BudgetError(
                    f"budget {budget} is under the smallest network of this space, which has {least:,} "
                    f"{budget.quantity}; raise the budget, or lower --floor or --divisor"
                )
            limits[budget.quantity] = min(limits[budget.quantity], budget.limit)
        return limits["flops"], limits["params"]

    def _levels(self, target: NDArray[np.float64]) -> NDArray[np.int64]:
        levels = np.rint((target * self._dense - self._lowest) / self._divisor)
        return np.clip(levels, 0, self._steps).astype(np.int64)

    def _vector(self, levels: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.minimum(self._lowest + levels * self._divisor, self._ceiling)

    def _usage(self, levels: NDArray[np.int64], limits: tuple[float, float]) -> NDArray[np.float64]:
        """Return the share of the tightest budget that each row of levels uses; at most 1 when all budgets hold."""
        flops, params = self._cost_model.batch(self._vector(levels))
        return np.maximum(flops / limits[0], params / limits[1])

    def _fill(
        self, levels: NDArray[np.int64], width_ratios: NDArray[np.float64], limits: tuple[float, float]
    ) -> NDArray[np.int64]:
        """Add one step at a time while one fits, always to the group that more scaling would widen first."""
        steps = np.eye(len(levels), dtype=np.int64)
        while True:
            open_groups = np.flatnonzero(levels < self._steps)
            raised = levels + steps[open_groups]
            fitting = self._usage(raised, limits) <= 1 if len(open_groups) else np.zeros(0, dtype=bool)
            if not fitting.any():
                return levels
            next_width = self._vector(levels) + self._divisor / 2
            reached_at = next_width / (np.maximum(width_ratios, 1e-9) * self._dense)
            chosen = open_groups[fitting][np.argmin(reached_at[open_groups[fitting]])]
            levels = levels + steps[chosen]

    def _use_up(
        self, levels: NDArray[np.int64], width_ratios: NDArray[np.float64], limits: tuple[float, float]
    ) -> NDArray[np.int64]:
        """Where no step fits and under 97% of the tightest budget is used, give up the proportions to use more."""
        for _ in range(MAX_EXCHANGES):
            if self._usage(levels[None], limits)[0] >= MIN_USAGE:
                return levels
            better = self._exchange(levels, limits)
            if better is None:
                break
            levels = self._fill(better, width_ratios, limits)
        if self._usage(levels[None], limits)[0] < MIN_USAGE and np.prod(self._steps + 1.0) <= MAX_ENUMERATED:
            return self._nearest_enumerated(levels, limits)
        return levels

    def _nearest_enumerated(self, levels: NDArray[np.int64], limits: tuple[float, float]) -> NDArray[np.int64]:
        """Enumerate a small space; return the nearest levels that use 97% of the budget, or those that use the most."""
        candidates = np.stack(np.meshgrid(*[np.arange(n + 1) for n in self._steps], indexing="ij"), -1)
        candidates = candidates.reshape(-1, len(levels))
        usage = self._usage(candidates, limits)
        usage[usage > 1] = -1.0
        distance = np.abs((candidates - levels) * self._divisor / self._dense).sum(axis=1)
        enough = usage >= min(MIN_USAGE, float(usage.max()))
        return np.asarray(candidates[np.argmin(np.where(enough, distance, np.inf))], dtype=np.int64)

    def _exchange(self, levels: NDArray[np.int64], limits: tuple[float, float]) -> NDArray[np.int64] | None:
        """Take one step from a group and give one to three to another, in the pair that uses most of the budget.

        Returns None where no exchange uses more than these levels do.
        """
        groups = len(levels)
        lower, upper = np.flatnonzero(levels > 0), np.flatnonzero(levels < self._steps)
        pairs = np.array([(i, j) for i in lower for j in upper if i != j], dtype=np.int64).reshape(-1, 2)
        moves = [
            np.eye(groups, dtype=np.int64)[pairs[:, 1]] * given - np.eye(groups, dtype=np.int64)[pairs[:, 0]]
            for given in (1, 2, 3)
        ]
        candidates = np.minimum(levels + np.concatenate(moves), self._steps)
        if not len(candidates):
            return None
        usage = self._usage(candidates, limits)
        usage[usage > 1] = -1.0
        best = int(np.argmax(usage))
        return candidates[best] if usage[best] > self._usage(levels[None], limits)[0] else None

    def _widths(self, levels: NDArray[np.int64]) -> Widths:
        return Widths(dict(zip(self._names, self._vector(levels).tolist(), strict=True)))
