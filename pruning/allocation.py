"""Which widths to take within budgets: from what each group loses as it narrows, or step by step by measurement."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from spaces.budget import Budget
from spaces.cost import Cost
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace
from spaces.widths import Widths

Curve = NDArray[np.float64]  # shape (width + 1,): what is lost when so many channels are left; falling


def usage(cost: Cost, budgets: Sequence[Budget]) -> float:
    """Return the share of the tightest absolute budget that a cost uses; above 1 is over it."""
    return max((getattr(cost, b.quantity) / b.limit for b in budgets if b.quantity != "latency"), default=0.0)


def convex(curve: Curve) -> Curve:
    """Return the largest convex curve below a falling one, so that steps of equal worth add up."""
    hull: list[int] = []
    for x, y in enumerate(curve):
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            if (curve[b] - curve[a]) * (x - a) < (y - curve[a]) * (b - a):
                break
            hull.pop()
        hull.append(x)
    return np.interp(np.arange(len(curve)), hull, curve[hull])


def score_curve(group: ChannelGroup, scores: NDArray[np.float64]) -> Curve:
    """Return what a group loses as it narrows when every channel is worth its score, in units of their mean.

    Narrowing by these curves ranks the channels of all groups together: each group's lowest scores go first, from
    every run of a grouped convolution equally many.

    Args:
        group: whose channels are scored.
        scores: shape (group.width,), finite, at least 0. All zero, they are worth nothing.
    """
    # The i-th lowest of every run side by side: they go together.
    rising = np.sort(scores.reshape(group.conv_groups, -1), axis=1).T.reshape(-1)
    relative = rising / max(float(rising.mean()), np.finfo(np.float64).tiny)
    return np.concatenate([[0.0], relative.cumsum()])[::-1]


def allocate(
    space: SearchSpace, curves: Mapping[str, Curve], budgets: Sequence[Budget], *, per_cost: bool = True
) -> Widths:
    """Narrow, step by step, the group that loses least for what the step saves, until the budgets hold.

    The rest of the budget is filled by `SearchSpace.fit` on the proportions found.

    Args:
        space: bounds and costs.
        curves: one per variable group.
        budgets: absolute.
        per_cost: compare losses per share of the tightest budget that a step saves, else per channel.

    Raises:
        BudgetError: the smallest network of the space does not meet a budget.
    """
    space.fit([1.0] * len(space.variable), budgets)  # raises where no allocation could do
    hulls = {name: convex(curve) for name, curve in curves.items()}
    widths = dict(space.largest)
    used = usage(space.cost(widths), budgets)
    while used > 1:
        best: tuple[float, str, int, float] | None = None
        for group in space.variable:
            width = widths[group.name]
            if width == group.lowest:
                continue
            narrower = max(group.lowest, (width - 1) // group.divisor * group.divisor)
            left = usage(space.cost({**widths, group.name: narrower}), budgets)
            lost = hulls[group.name][narrower] - hulls[group.name][width]
            price = lost / (max(used - left, 1e-12) if per_cost else width - narrower)
            if best is None or price < best[0]:
                best = (price, group.name, narrower, left)
        assert best is not None
        _, name, widths[name], used = best
    return proportional(space, widths, budgets)


def proportional(space: SearchSpace, widths: Mapping[str, int], budgets: Sequence[Budget]) -> Widths:
    """Return the widths nearest to the proportions of `widths` that use the budgets up."""
    return space.fit([widths[group.name] / group.width for group in space.variable], budgets)


def accuracy_path(
    space: SearchSpace,
    judge: Callable[[Widths], float],
    reached: Callable[[Widths], bool],
    step: float,
) -> list[Widths]:
    """Cut a little where it hurts least, again and again: the authors' greedy loop.

    Every step tries each group alone, narrowed until at least `step` of the dense FLOPs is saved, and keeps the
    attempt that `judge` likes best. The authors extrapolate the necessary cut from a trial of 10%; here the exact
    cost gives it, so that all attempts save the same up to one channel.

    Args:
        space: bounds and costs.
        judge: how good a net of these widths is without training; higher is better.
        reached: whether to stop.
        step: share of the dense FLOPs that a step saves.

    Returns:
        The widths after every step, from the largest on.
    """
    path = [space.largest]
    target = step * space.dense_cost.flops
    while not reached(path[-1]):
        attempts = [each for group in space.variable if (each := _narrowed(space, path[-1], group.name, target))]
        if not attempts:
            break
        path.append(max(attempts, key=judge))
    return path


def _narrowed(space: SearchSpace, widths: Widths, name: str, target: float) -> Widths | None:
    group, before, width = space.by_name[name], space.cost(widths).flops, widths[name]
    while width > group.lowest:
        width = max(group.lowest, (width - 1) // group.divisor * group.divisor)
        if before - space.cost(widths | {name: width}).flops >= target:
            break
    return widths | {name: width} if width < widths[name] else None
