"""How many kernels every input channel keeps within budgets, and the exact cost of that before a network is built.

The indicators times one multiplier give the levels (the paper has no multiplier and chooses its G and T by hand). The
multiplier is the largest one within the budgets. The rest of the budgets is filled channel by channel, in the order in
which a larger multiplier would raise the channels. Channels that no layer reads any more are cut from the layers that
write them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.allocation import usage
from pruning.methods.kse.kernel_indicator import LevelRule
from pruning.methods.kse.shareable_convs import ShareableConv, ids_of, needed_ids
from pruning.selection import Selection, kept_ids, select_channels
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.errors import BudgetError
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace
from spaces.widths import Widths

HALVINGS = 60  # of the range of the multiplier, by bisection


@dataclass(frozen=True)
class LevelAssignment:
    """A level for every input channel of every convolution, and the network that these levels give.

    Attributes:
        levels: of the input channels of all convolutions, one convolution after the other.
        kept: number of kernels that each of these channels keeps.
        widths: of the network.
        cost: of the network, with shared kernels.
    """

    levels: NDArray[np.int64]
    kept: NDArray[np.int64]
    widths: Widths
    cost: Cost


class KernelSpace:
    """The networks that levels of the input channels of `convs` give, and their costs.

    Args:
        indicators: name of a convolution -> indicator of each of its input channels.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        convs: Sequence[ShareableConv],
        indicators: Mapping[str, NDArray[np.float64]],
    ) -> None:
        self.space, self.convs = space, tuple(convs)
        self.indicators = np.concatenate([indicators[conv.name] for conv in convs])
        self._ids = np.concatenate([conv.inputs for conv in convs])
        self._conv_of = np.repeat(np.arange(len(convs)), [len(conv.inputs) for conv in convs])
        self._starts = np.cumsum([0, *[len(conv.inputs) for conv in convs]])
        self._needed = needed_ids(net, space, convs)
        barred = self._barred()
        self._needed[barred] = False
        self.indicators[barred[self._ids]] = -1.0
        self._price = np.array([conv.positions * conv.area for conv in convs], dtype=np.int64)
        self._area = np.array([conv.area for conv in convs], dtype=np.int64)
        self._groups = np.array([conv.groups for conv in convs], dtype=np.int64)
        self._outputs = [_Axis.of(space, conv.outputs) for conv in convs]
        self._inputs = [_Axis.of(space, conv.inputs) for conv in convs]

    @cached_property
    def _best(self) -> NDArray[np.int64]:
        """The input channel of the largest indicator in every conv group of every convolution.

        It always keeps a kernel, so that no output is constant.
        """
        best = []
        for conv, start in zip(self.convs, self._starts, strict=False):
            size = len(conv.inputs) // conv.groups
            best += [
                begin + int(self.indicators[begin : begin + size].argmax())
                for begin in range(start, start + len(conv.inputs), size)
            ]
        return np.array(best)

    def _barred(self) -> NDArray[np.bool_]:
        """Return, for every channel id, whether it is cut because its group's ceiling is below the dense width."""
        barred = np.ones_like(self._needed)
        scores = {group.name: self._value[ids_of([group])] for group in self.space.variable}
        kept = select_channels(self.space, {n: torch.from_numpy(s) for n, s in scores.items()}, self.space.largest)
        for group in self.space.groups:
            index = kept[group.name].numpy() if group.name in kept else np.arange(group.width)
            barred[group.start + index] = False
        return barred

    @cached_property
    def _value(self) -> NDArray[np.float64]:
        """The largest indicator of each channel id."""
        value = np.zeros(len(self._needed))
        np.maximum.at(value, self._ids, self.indicators)
        return value

    def levels(self, rule: LevelRule, multiplier: float) -> NDArray[np.int64]:
        """Return the level of every input channel of every convolution."""
        found = rule.level_of(self.indicators * multiplier)
        found[self._best] = np.maximum(found[self._best], rule.lowest)
        return found

    def assign(self, rule: LevelRule, levels: NDArray[np.int64]) -> LevelAssignment:
        """Return the assignment of these levels."""
        widths = self._widths(levels)
        outputs = np.array([axis.length(widths) for axis in self._outputs]) // self._groups
        inputs = np.array([axis.length(widths) for axis in self._inputs])
        kept = rule.kernels(levels, outputs[self._conv_of])
        # By how many kernels each convolution has fewer than the plain layer.
        saved = outputs * inputs - np.add.reduceat(kept, self._starts[:-1])
        plain = self.space.cost(widths)
        flops, params = int((self._price * saved).sum()), int((self._area * saved).sum())
        return LevelAssignment(levels, kept, widths, Cost(plain.flops - flops, plain.params - params))

    def _alive(self, levels: NDArray[np.int64]) -> NDArray[np.bool_]:
        alive = self._needed.copy()
        alive[self._ids[levels > 0]] = True
        return alive

    def _widths(self, levels: NDArray[np.int64]) -> Widths:
        alive = self._alive(levels)
        return Widths({group.name: _legal(group, alive[ids_of([group])]) for group in self.space.variable})

    def scores(self, levels: NDArray[np.int64]) -> Mapping[str, Tensor]:
        """Return group -> scores for the cut: channels that are read score highest, then those of large indicators."""
        value = self._value + 2.0 * self._alive(levels)
        return {group.name: torch.from_numpy(value[ids_of([group])]) for group in self.space.variable}

    def kept_kernels(
        self, assignment: LevelAssignment, selection: Selection
    ) -> Iterator[tuple[ShareableConv, NDArray[np.int64]]]:
        """Yield every convolution with the number of kernels of each input channel that is left after the cut."""
        left = kept_ids(self.space, selection)
        for conv, begin in zip(self.convs, self._starts, strict=False):
            yield conv, assignment.kept[begin : begin + len(conv.inputs)][left[conv.inputs]]

    def fit(self, rule: LevelRule, budgets: Sequence[Budget]) -> tuple[LevelAssignment, float]:
        """Return the largest assignment within absolute budgets on FLOPs and parameters, and its multiplier.

        Raises:
            BudgetError: the smallest assignment is over a budget; the message gives its cost.
        """

        def scaled(multiplier: float) -> LevelAssignment:
            return self.assign(rule, self.levels(rule, multiplier))

        least, positive = scaled(0.0), self.indicators[self.indicators > 0]
        if usage(least.cost, budgets) > 1:
            raise BudgetError(
                f"sharing kernels on {rule.count} levels reaches {least.cost.flops:,} flops and {least.cost.params:,} "
                f"params at least, over the budget of {' and '.join(map(str, budgets))}; raise it"
            )
        low, high = 0.0, 1.0 / float(positive.min(initial=1.0))
        whole = self.assign(rule, np.where(self.indicators >= 0, rule.count, 0))
        if usage(whole.cost, budgets) <= 1:
            return whole, high
        best = scaled(high)
        if usage(best.cost, budgets) <= 1:
            return self._filled(rule, best, budgets), high
        best = least
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            candidate = scaled(middle)
            if usage(candidate.cost, budgets) <= 1:
                low, best = middle, candidate
            else:
                high = middle
        return self._filled(rule, best, budgets), low

    def _filled(self, rule: LevelRule, assignment: LevelAssignment, budgets: Sequence[Budget]) -> LevelAssignment:
        """Raise single channels by one level at a time while the budgets hold; channels that are cut stay cut."""
        steps = np.array([0, *range(rule.lowest, rule.count + 1)])
        alive = self._alive(assignment.levels)
        levels, cost = assignment.levels.copy(), assignment.cost
        outputs = np.array([axis.length(assignment.widths) for axis in self._outputs]) // self._groups
        limits = {budget.quantity: budget.limit for budget in budgets if budget.quantity != "latency"}
        for _ in range(rule.count):
            after = steps[np.minimum(np.searchsorted(steps, levels, side="right"), len(steps) - 1)]
            with np.errstate(divide="ignore", invalid="ignore"):
                wanted = np.where(self.indicators > 0, rule.start(after) / self.indicators, np.inf)
            more = rule.kernels(after, outputs[self._conv_of]) - rule.kernels(levels, outputs[self._conv_of])
            raised = 0
            for i in np.argsort(wanted, kind="stable").tolist():
                if more[i] <= 0 or not alive[self._ids[i]]:
                    continue
                conv, extra = self._conv_of[i], int(more[i])
                new = Cost(cost.flops + extra * int(self._price[conv]), cost.params + extra * int(self._area[conv]))
                if all(getattr(new, name) <= limit for name, limit in limits.items()):
                    levels[i], cost, raised = after[i], new, raised + 1
            if not raised:
                break
        return self.assign(rule, levels)


@dataclass(frozen=True)
class _Axis:
    """Length of an axis of a weight as a function of the widths."""

    constant: int
    times: tuple[tuple[str, int], ...]  # (variable group, how often each of its channels is on the axis)

    @classmethod
    def of(cls, space: SearchSpace, ids: NDArray[np.int64]) -> "_Axis":
        times = []
        for group in space.variable:
            count = int(((ids >= group.start) & (ids < group.start + group.width)).sum())
            if count:
                times.append((group.name, count // group.width))
        varying = sum(space.by_name[name].width * count for name, count in times)
        return cls(len(ids) - varying, tuple(times))

    def length(self, widths: Mapping[str, int]) -> int:
        return self.constant + sum(widths[name] * count for name, count in self.times)


def _legal(group: ChannelGroup, alive: NDArray[np.bool_]) -> int:
    """Return the smallest legal width that keeps all alive channels."""
    most = int(alive.reshape(group.conv_groups, -1).sum(axis=1).max()) * group.conv_groups
    width = ceil(max(most, group.lowest) / group.divisor) * group.divisor
    return min(width, group.ceiling)
