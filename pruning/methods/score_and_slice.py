"""Cut by a criterion's scores, then fine-tune: the simplest method, and the control arms."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from pruning.base import CRITERIA, Context, Distillation, Goal, Snapshot, setting
from pruning.selection import select_channels
from pruning.surgery import slice_channels
from spaces.space import SearchSpace, uniform_point
from spaces.widths import Widths


def wanted_widths(space: SearchSpace, goal: Goal) -> Widths:
    """Return the goal's widths, or the largest uniform ones inside its budgets."""
    if goal.widths is not None:
        return space.full | goal.widths
    return uniform_widths(space, goal)


def uniform_widths(space: SearchSpace, goal: Goal) -> Widths:
    """Return the largest widths inside the goal's budgets that keep the same share of every group."""
    return space.fit(uniform_point(space), [budget.resolve(space.dense_cost) for budget in goal.budgets])


def finetune(
    narrow: nn.Module,
    widths: Widths,
    context: Context,
    note: Mapping[str, float | int | str | bool] | None = None,
    distillation: Distillation | None = None,
) -> Iterator[Snapshot]:
    """Re-estimate the BatchNorm statistics of a freshly cut net, then train it; one snapshot before and per epoch.

    Every snapshot holds the same net object, which goes on training.
    """
    note = note or {}
    context.reestimate_batchnorm(narrow)
    yield Snapshot(narrow, widths, 0, note)
    for epoch in context.fit(narrow, context.epochs, distillation=distillation):
        yield Snapshot(narrow, widths, epoch, note)


@dataclass(frozen=True)
class ScoreAndSlice:
    """Keep the channels that a criterion scores highest, and fine-tune what is left.

    Works at the widths it is given; from budgets alone it takes uniform widths.
    """

    criterion: str = setting("l2", help="name in pruning.base.CRITERIA")

    name: ClassVar[str] = "score_and_slice"
    paper: ClassVar[str] = ""
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = True

    def prepare(self, net: nn.Module, space: SearchSpace, context: Context) -> Any:
        """Need nothing."""
        return None

    def run(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield the cut net before training and after every epoch."""
        widths = wanted_widths(space, goal)
        scores = CRITERIA[self.criterion]().scores(net, space, context)
        narrow = slice_channels(net, space, select_channels(space, scores, widths))
        yield from finetune(narrow, widths, context, {"criterion": self.criterion})


@dataclass(frozen=True)
class UniformL2(ScoreAndSlice):
    """The control arm: filters of the largest L2 norm, at uniform widths when only budgets are given."""

    criterion: str = "l2"

    name: ClassVar[str] = "l2"


@dataclass(frozen=True)
class RandomChannels(ScoreAndSlice):
    """The lower control arm: channels at random."""

    criterion: str = "random"

    name: ClassVar[str] = "random"
