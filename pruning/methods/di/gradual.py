"""Gradual narrowing: small cuts and training take turns, as in the authors' code of DI. Hou & Kung, arXiv 2005.13796.

In the authors' code, a net loses 0.5% of the dense FLOPs twice per epoch and trains at a small constant learning rate
until the budget holds, with cut channels masked. Here, equal cuts reach the goal in a given number of epochs, cut
channels are removed, and BatchNorm is re-estimated before the next channels are chosen.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pruning.allocation import usage
from pruning.base import Context, Distillation, Goal, Rates, Snapshot
from pruning.rewriting.narrowing import narrow_space, stages
from pruning.selection import Selection
from spaces.budget import Budget
from spaces.space import SearchSpace
from spaces.widths import Widths

CUTS_PER_EPOCH = 2


@dataclass(frozen=True)
class Cut:
    """A narrow net and how it was cut from a wider one.

    Attributes:
        net: the narrow net.
        widths: of the narrow net.
        space: of the wider net.
        selection: channels of the wider net that were kept.
        ranks: of all channels of the wider net, group name -> shape (group.width,).
    """

    net: nn.Module
    widths: Widths
    space: SearchSpace
    selection: Selection
    ranks: Mapping[str, Tensor]


@dataclass(frozen=True)
class GradualSchedule:
    """The training between cuts.

    Attributes:
        epochs: largest number of epochs, at least 1; `CUTS_PER_EPOCH` cuts come before each of them.
        learning_rate: constant.
        distillation: None keeps the trial's own settings.
    """

    epochs: int
    learning_rate: float
    distillation: Distillation | None = None


def reached(space: SearchSpace, goal: Goal) -> bool:
    """Whether a net of this space meets a goal at full width; latency budgets are not checked."""
    if goal.widths is not None:
        return space.full | goal.widths == space.full
    budgets = [budget.resolve(space.dense_cost) for budget in goal.budgets]
    return space.full == space.largest and usage(space.dense_cost, budgets) <= 1


def goals_between(space: SearchSpace, goal: Goal, cuts: int) -> Sequence[Goal]:
    """Return one goal per cut; the goal of the last cut is `goal`.

    Widths shrink by constant factors. Costs that budgets limit fall by constant amounts, from those of the dense net.

    Raises:
        SpaceError: a width is not legal.
        BudgetError: the smallest network of the space does not meet a budget.
    """
    if goal.widths is not None:
        widths = space.full | goal.widths
        space.check(widths)
        return [Goal(widths=stage) for stage in stages(space, widths, cuts)]
    budgets = [budget.resolve(space.dense_cost) for budget in goal.budgets]
    space.fit([1.0] * len(space.variable), budgets)
    return [
        Goal(budgets=tuple(_loosened(budget, space, 1 - number / cuts) for budget in budgets))
        for number in range(1, cuts + 1)
    ]


def _loosened(budget: Budget, space: SearchSpace, share: float) -> Budget:
    """Return the budget moved by `share` of the distance to the cost of the dense net."""
    if budget.quantity == "latency":
        return budget
    above = max(0.0, getattr(space.dense_cost, budget.quantity) - budget.limit)
    return Budget(budget.quantity, math.floor(budget.limit + share * above))


def narrow_gradually(
    net: nn.Module,
    goals: Sequence[Goal],
    schedule: GradualSchedule,
    context: Context,
    cut: Callable[[nn.Module, Goal, Cut | None], Cut],
) -> Generator[Snapshot, None, tuple[Cut, int]]:
    """Cut and train until the last goal is reached; yield the net after every epoch before the last.

    Args:
        net: the dense network, which does not meet the last goal and is not changed.
        goals: `CUTS_PER_EPOCH` per epoch.
        cut: called as cut(net, goal, last cut) for a net that meets the goal; the first call gets the dense net and
            None, later calls the trained net of the last cut and that cut.

    Returns:
        The last cut, whose net is trained, and the number of epochs spent.
    """
    last: Cut | None = None
    cuts = 0
    for epoch in range(1, schedule.epochs + 1):
        for goal in goals[CUTS_PER_EPOCH * (epoch - 1) : CUTS_PER_EPOCH * epoch]:
            if last is not None:
                if reached(space_after(last), goal):
                    continue
                context.reestimate_batchnorm(last.net)
            last = cut(net if last is None else last.net, goal, last)
            cuts += 1
        assert last is not None
        rates = Rates(constant=schedule.learning_rate)
        for _ in context.fit(last.net, 1, rates=rates, distillation=schedule.distillation):
            pass
        if reached(space_after(last), goals[-1]):
            break
        yield Snapshot(last.net, last.widths, epoch, {"cuts": cuts})
    assert last is not None
    return last, epoch


def space_after(cut: Cut) -> SearchSpace:
    """Return the space of the narrow net of a cut."""
    return narrow_space(cut.space, cut.selection)
