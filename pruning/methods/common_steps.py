"""Steps that several pruning methods share: the widths of a goal, and fine-tuning after the cut."""

import math
from collections.abc import Iterator, Mapping

from torch import nn

from pruning.base import Context, Goal, Snapshot
from pruning.selection import Selection
from spaces.space import SearchSpace, uniform_ratios
from spaces.widths import Widths


def wanted_widths(space: SearchSpace, goal: Goal) -> Widths:
    """Return the goal's widths, or the largest uniform widths within its budgets."""
    if goal.widths is not None:
        return space.full | goal.widths
    return uniform_widths(space, goal)


def uniform_widths(space: SearchSpace, goal: Goal) -> Widths:
    """Return the largest widths within the goal's budgets that keep the same fraction of every group.

    Raises:
        BudgetError: the smallest network of the space does not meet a budget.
    """
    return space.fit(uniform_ratios(space), [budget.resolve(space.dense_cost) for budget in goal.budgets])


def finetune(
    narrow: nn.Module,
    widths: Widths,
    context: Context,
    note: Mapping[str, float | int | str | bool] | None = None,
    spent: float = 0,
    selection: Selection | None = None,
) -> Iterator[Snapshot]:
    """Re-estimate the BatchNorm statistics of a freshly cut net, then train it for the rest of the trial's epochs.

    Yields one snapshot before the training and one after every epoch. All of them hold the same net object, which
    the training goes on changing.

    Args:
        spent: epochs of the trial that were used before the cut; snapshots tell whole epochs only.
        selection: the channels that were kept, where the cut did nothing else.
    """
    note = note or {}
    context.reestimate_batchnorm(narrow)
    yield Snapshot(narrow, widths, math.floor(spent), note, selection=selection)
    for epoch in context.fit(narrow, context.epochs - spent):
        finished = math.floor(min(spent + epoch, context.epochs))
        yield Snapshot(narrow, widths, finished, note, selection=selection)
