"""Widths within budgets: from the loss of each group as it narrows, or from measurements step by step."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from spaces.budget import Budget
from spaces.cost import QUANTITIES, Cost
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace
from spaces.widths import Widths

# What a group loses when w channels remain, for w = 0..width: shape (width + 1,), falling, 0 at the full width.
Curve = NDArray[np.float64]


def usage(cost: Cost, budgets: Sequence[Budget]) -> float:
    """Return cost / limit of the tightest budget, all absolute; above 1 the cost exceeds it. Latency is left out."""
    return max((getattr(cost, b.quantity) / b.limit for b in budgets if b.quantity in QUANTITIES), default=0.0)


def convex(curve: Curve) -> Curve:
    """Return the largest convex curve below a falling one; then every further step loses at least as much."""
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
    """Return the curve of a group that loses the scores of its removed channels, in units of their mean.

    Narrowing by these curves ranks the channels of all groups together: each group's lowest scores are removed first,
    the same number from every conv group of a grouped convolution.

    Args:
        group: the group that is scored.
        scores: shape (group.width,), finite, at least 0. If all scores are 0, the curve is 0.
    """
    # The i-th lowest scores of all conv groups stand side by side, because they are removed together.
    rising = np.sort(scores.reshape(group.conv_groups, -1), axis=1).T.reshape(-1)
    relative = rising / max(float(rising.mean()), np.finfo(np.float64).tiny)
    return np.concatenate([[0.0], relative.cumsum()])[::-1]


def allocate(
    space: SearchSpace, curves: Mapping[str, Curve], budgets: Sequence[Budget], *, per_cost: bool = True
) -> Widths:
    """Narrow, step by step, the group that loses least for the cost that the step saves, until the budgets hold.

    `SearchSpace.fit` then fills the rest of the budget, in the proportions found.

    Args:
        space: bounds and costs.
        curves: one per variable group.
        budgets: absolute.
        per_cost: divide losses by the saved share of the tightest budget, else by the number of channels removed.

    Raises:
        BudgetError: the smallest network of the space does not meet a budget.
    """
    space.fit([1.0] * len(space.variable), budgets)  # raises if no widths meet the budgets
    groups = space.variable
    hulls = [convex(curves[group.name]) for group in groups]
    lowest = np.array([group.lowest for group in groups])
    divisor = np.array([group.divisor for group in groups])
    widths = np.array([group.ceiling for group in groups])
    used = usage(space.cost(space.largest), budgets)
    while used > 1:
        narrower = np.maximum(lowest, (widths - 1) // divisor * divisor)
        open_groups = np.flatnonzero(widths > lowest)
        attempts = np.tile(widths, (len(open_groups), 1))  # one row for every group that is narrowed alone
        attempts[np.arange(len(open_groups)), open_groups] = narrower[open_groups]
        used_after = _usages(space, attempts, budgets)
        lost = np.array([hulls[i][narrower[i]] - hulls[i][widths[i]] for i in open_groups])
        saved = np.maximum(used - used_after, 1e-12) if per_cost else (widths - narrower)[open_groups]
        best = int(np.argmin(lost / saved))
        widths, used = attempts[best], float(used_after[best])
    return proportional(space, {group.name: int(w) for group, w in zip(groups, widths, strict=True)}, budgets)


def _usages(space: SearchSpace, widths: NDArray[np.int64], budgets: Sequence[Budget]) -> NDArray[np.float64]:
    """Return what `usage` does for n width vectors, shape (n, groups)."""
    limits = {budget.quantity: budget.limit for budget in budgets if budget.quantity in QUANTITIES}
    used = np.zeros(len(widths))
    for cost, limit in zip(space.cost_model.batch(widths, tuple(limits)), limits.values(), strict=True):
        used = np.maximum(used, cost / limit)
    return used


def proportional(space: SearchSpace, widths: Mapping[str, int], budgets: Sequence[Budget]) -> Widths:
    """Return the widths nearest to the proportions of `widths` that use the budgets up."""
    return space.fit([widths[group.name] / group.width for group in space.variable], budgets)


def accuracy_path(
    space: SearchSpace,
    judge: Callable[[Widths], float],
    reached: Callable[[Widths], bool],
    step: float,
) -> list[Widths]:
    """Narrow one group per step, each time the group whose narrowing `judge` likes best: the authors' greedy loop.

    Every step tries each group alone, narrowed until at least `step` of the dense FLOPs is saved. The authors
    extrapolate the necessary cut from a trial cut of 10%; here the exact cost gives it, so that all attempts save the
    same up to one channel.

    Args:
        space: bounds and costs.
        judge: quality of a net of these widths without training; higher is better.
        reached: whether to stop at these widths.
        step: share of the dense FLOPs that a step saves.

    Returns:
        The widths after every step, from the largest on.
    """
    path = [space.largest]
    target = step * space.dense_cost.flops
    while not reached(path[-1]):
        narrowed = (_narrowed(space, path[-1], group.name, target) for group in space.variable)
        attempts = [widths for widths in narrowed if widths is not None]
        if not attempts:
            break
        path.append(max(attempts, key=judge))
    return path


def _narrowed(space: SearchSpace, widths: Widths, name: str, target: float) -> Widths | None:
    """Narrow one group until `target` FLOPs are saved or it is as narrow as allowed; None if it already is."""
    group, before, width = space.by_name[name], space.cost(widths).flops, widths[name]
    while width > group.lowest:
        width = max(group.lowest, (width - 1) // group.divisor * group.divisor)
        if before - space.cost(widths | {name: width}).flops >= target:
            break
    return widths | {name: width} if width < widths[name] else None
