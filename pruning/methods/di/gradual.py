"""Cut a little, train a little, again and again: how the authors of DI narrow a net. Hou & Kung, arXiv 2005.13796.

Their nets lose 0.5% of the dense FLOPs twice per epoch and train on at a small constant rate until the budget holds,
with cut channels masked. Here the cuts share out evenly what the goal asks for over a given number of epochs, cut
channels are gone for good, and BatchNorm is re-estimated before the next ones are chosen.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pruning.allocation import usage
from pruning.base import Context, Distillation, Goal, Snapshot
from pruning.rewriting.narrowing import narrow_space, stages
from pruning.selection import Selection
from spaces.budget import Budget
from spaces.space import SearchSpace
from spaces.widths import Widths

CUTS_AN_EPOCH = 2


@dataclass(frozen=True)
class Cut:
    """A net that was cut from a wider one.

    Attributes:
        net: at `widths`.
        space: of the wider net.
        selection: its channels that stay.
        ranks: of all its channels, group name -> shape (group.width,).
    """

    net: nn.Module
    widths: Widths
    space: SearchSpace
    selection: Selection
    ranks: Mapping[str, Tensor]


@dataclass(frozen=True)
class Pace:
    """How training goes on between cuts.

    Attributes:
        epochs: at most, at least one; each after `CUTS_AN_EPOCH` cuts.
        learning_rate: constant.
        distillation: None follows the trial's own settings.
    """

    epochs: int
    learning_rate: float
    distillation: Distillation | None = None


def reached(space: SearchSpace, goal: Goal) -> bool:
    """Whether a net of this space meets a goal at full width; a latency is left to who measures it."""
    if goal.widths is not None:
        return space.full | goal.widths == space.full
    budgets = [budget.resolve(space.dense_cost) for budget in goal.budgets]
    return space.full == space.largest and usage(space.dense_cost, budgets) <= 1


def goals_between(space: SearchSpace, goal: Goal, cuts: int) -> Sequence[Goal]:
    """Return what each of so many cuts has to reach, the last of them the goal.

    Widths shrink by constant factors. What budgets limit falls by constant amounts, from what the dense net has.

    Raises:
        SpaceError: a width that its group may not have.
        BudgetError: the smallest network of the space does not meet a budget.
    """
    if goal.widths is not None:
        widths = space.full | goal.widths
        space.check(widths)
        return [Goal(widths=each) for each in stages(space, widths, cuts)]
    budgets = [budget.resolve(space.dense_cost) for budget in goal.budgets]
    space.fit([1.0] * len(space.variable), budgets)
    return [
        Goal(budgets=tuple(_loosened(budget, space, 1 - number / cuts) for budget in budgets))
        for number in range(1, cuts + 1)
    ]


def _loosened(budget: Budget, space: SearchSpace, share: float) -> Budget:
    """Return the budget with `share` of the way back to the dense net."""
    if budget.quantity == "latency":
        return budget
    above = max(0.0, getattr(space.dense_cost, budget.quantity) - budget.limit)
    return Budget(budget.quantity, math.floor(budget.limit + share * above))


def narrow_gradually(
    net: nn.Module,
    goals: Sequence[Goal],
    pace: Pace,
    context: Context,
    cut: Callable[[nn.Module, Goal, Cut | None], Cut],
) -> Generator[Snapshot, None, tuple[Cut, int]]:
    """Cut and train until the last goal is reached; yield the net after every epoch before the last.

    Args:
        net: the dense network, which does not meet the last goal and is not changed.
        goals: `CUTS_AN_EPOCH` per epoch.
        cut: makes a net of a goal, from the dense one and None, then from a trained one and the cut that it came from.

    Returns:
        The last cut, whose net is trained, and the number of epochs it took.
    """
    done: Cut | None = None
    cuts = 0
    for epoch in range(1, pace.epochs + 1):
        for goal in goals[CUTS_AN_EPOCH * (epoch - 1) : CUTS_AN_EPOCH * epoch]:
            if done is not None:
                if reached(space_after(done), goal):
                    continue
                context.reestimate_batchnorm(done.net)
            done = cut(net if done is None else done.net, goal, done)
            cuts += 1
        assert done is not None
        for _ in context.fit(done.net, 1, learning_rate=pace.learning_rate, distillation=pace.distillation):
            pass
        if reached(space_after(done), goals[-1]):
            break
        yield Snapshot(done.net, done.widths, epoch, {"cuts": cuts})
    assert done is not None
    return done, epoch


def space_after(cut: Cut) -> SearchSpace:
    """Return the space of the net that was cut."""
    return narrow_space(cut.space, cut.selection)
