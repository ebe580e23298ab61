"""Projection of width ratios onto hard budgets: to legal widths, or to real numbers that follow a gradient."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from spaces.budget import Budget
from spaces.cost import QUANTITIES, CostModel
from spaces.errors import BudgetError, SpaceError
from spaces.groups import ChannelGroup
from spaces.widths import Widths

MIN_USAGE = 0.97  # share of the tightest budget below which exchanges between groups are tried
MAX_EXCHANGES = 8
MAX_ENUMERATED = 50_000  # a space of at most so many candidates is enumerated
UNKNOWN = {  # why a network may not have the quantity of a budget
    "activations": "the peak of its live tensors does not follow from its widths",
    "size": "the size of its file is not known to this space",
}
SECANT_STEPS = 4  # to a budget: log cost is nearly linear in the log of a common factor of all widths
Floats = NDArray[np.float64]


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

    def fit(self, width_ratios: Floats, budgets: Sequence[Budget]) -> Widths:
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

    def _limits(self, budgets: Sequence[Budget]) -> Mapping[str, float]:
        """Return quantity -> limit, of the quantities that are limited."""
        limits: dict[str, float] = {}
        smallest = self._cost_model(self._widths(np.zeros_like(self._steps)))
        for budget in budgets:
            if budget.quantity not in QUANTITIES:
                continue
            least = getattr(smallest, budget.quantity)
            if least is None:
                raise BudgetError(f"budget {budget} cannot be held here: {UNKNOWN[budget.quantity]}; leave it out")
            if budget.limit < least:
                raise BudgetError(
                    f"budget {budget} is under the smallest network of this space, which has {least:,} "
                    f"{budget.unit}; raise the budget, or lower --floor or --divisor"
                )
            limits[budget.quantity] = min(limits.get(budget.quantity, float("inf")), budget.limit)
        return limits

    def _levels(self, target: Floats) -> NDArray[np.int64]:
        levels = np.rint((target * self._dense - self._lowest) / self._divisor)
        return np.clip(levels, 0, self._steps).astype(np.int64)

    def _vector(self, levels: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.minimum(self._lowest + levels * self._divisor, self._ceiling)

    def _usage(self, levels: NDArray[np.int64], limits: Mapping[str, float]) -> Floats:
        """Return the share of the tightest budget that each row of levels uses; at most 1 when all budgets hold."""
        costs = self._cost_model.batch(self._vector(levels), tuple(limits))
        shares = [cost / limit for cost, limit in zip(costs, limits.values(), strict=True)]
        return np.asarray(np.max([np.zeros(len(levels)), *shares], axis=0))

    def _fill(self, levels: NDArray[np.int64], width_ratios: Floats, limits: Mapping[str, float]) -> NDArray[np.int64]:
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
        self, levels: NDArray[np.int64], width_ratios: Floats, limits: Mapping[str, float]
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

    def _nearest_enumerated(self, levels: NDArray[np.int64], limits: Mapping[str, float]) -> NDArray[np.int64]:
        """Enumerate a small space; return the nearest levels that use 97% of the budget, else most of it."""
        candidates = np.stack(np.meshgrid(*[np.arange(n + 1) for n in self._steps], indexing="ij"), -1)
        candidates = candidates.reshape(-1, len(levels))
        usage = self._usage(candidates, limits)
        usage[usage > 1] = -1.0
        distance = np.abs((candidates - levels) * self._divisor / self._dense).sum(axis=1)
        enough = usage >= min(MIN_USAGE, float(usage.max()))
        return np.asarray(candidates[np.argmin(np.where(enough, distance, np.inf))], dtype=np.int64)

    def _exchange(self, levels: NDArray[np.int64], limits: Mapping[str, float]) -> NDArray[np.int64] | None:
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


class Relaxation:
    """Widths as real numbers, for many candidates at once, as `SearchSpace.fit` has them before its rounding.

    Widths are given as log2 ratios: log2 of width / dense width, at most 0.

    Args:
        latency_use: widths, shape (n, groups) -> predicted shares of the latency limit, shape (n,); None without one.
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        cost_model: CostModel,
        latency_use: Callable[[Floats], Floats] | None = None,
    ) -> None:
        self._cost_model, self._latency_use = cost_model, latency_use
        self._dense = np.array([group.width for group in groups], dtype=np.float64)
        self._lowest = np.log2(np.array([group.lowest for group in groups]) / self._dense)
        self._ceiling = np.log2(np.array([group.ceiling for group in groups]) / self._dense)

    def fit(self, proportions: Floats, limits: Floats) -> Floats:
        """Return the log2 ratios, shape (n, groups), at which widths of given proportions use the limits up.

        The common factor of the widths is found by the secant method on the log cost.

        Args:
            proportions: log2 proportions, shape (n, groups).
            limits: on QUANTITIES in their order, infinite without such a budget, shape (n, quantities); the last may be
                left out.
        """
        near = np.zeros(len(proportions))
        far = near - 1.0
        near_use, far_use = (self.usage(self._at(proportions, scale), limits) for scale in (near, far))
        for _ in range(SECANT_STEPS):
            slope = np.maximum((near_use - far_use) / np.where(near == far, 1.0, near - far), 0.3)
            far, far_use = near, near_use
            near = near - np.clip(near_use / slope, -4.0, 4.0)
            near_use = self.usage(self._at(proportions, near), limits)
        return self._at(proportions, near)

    def usage(self, log2_ratios: Floats, limits: Floats) -> Floats:
        """Return log2 of the used share of the tightest limit, shape (n,)."""
        widths = self._dense * 2.0**log2_ratios
        names, columns = self._limited(limits)
        costs = np.stack(self._cost_model.batch(widths, names), axis=1)
        used = np.max(costs / limits[:, columns], axis=1)
        if self._latency_use is not None:
            used = np.maximum(used, self._latency_use(widths))
        return np.asarray(np.log2(np.maximum(used, 1e-12)))

    def slopes(self, log2_ratios: Floats, limits: Floats) -> Floats:
        """Return the gradient of log cost by the log2 ratios, for the tightest of the limits, shape (n, groups).

        Under a latency limit too, this is the gradient of a counted cost: after every gradient step, `fit` brings the
        widths back to the predicted latency.
        """
        widths = self._dense * 2.0**log2_ratios
        names, columns = self._limited(limits)
        costs = np.stack(self._cost_model.batch(widths, names), axis=1) / limits[:, columns]
        by_width = np.stack(self._cost_model.slopes(widths, names), axis=1) / limits[:, columns, None]
        tightest = np.argmax(costs, axis=1)
        slopes = by_width[np.arange(len(widths)), tightest]
        return np.asarray(slopes * widths / np.maximum(costs.max(axis=1), 1e-12)[:, None])

    def _limited(self, limits: Floats) -> tuple[list[str], list[int]]:
        """Return the quantities that are limited, FLOPs at least, and their columns."""
        columns = [column for column in range(limits.shape[1]) if not column or np.isfinite(limits[:, column]).any()]
        return [QUANTITIES[column] for column in columns], columns

    def _at(self, proportions: Floats, scale: Floats) -> Floats:
        return np.asarray(np.clip(proportions + scale[:, None], self._lowest, self._ceiling))
