"""How many kernels every input channel keeps within budgets, and what that costs, exactly, before anything is built.

The indicators times one multiplier give the levels (the paper has no multiplier and chooses its G and T by hand). The
multiplier is the largest inside the budgets; what it leaves over is filled channel by channel, in the order in which a
larger multiplier would raise them. Channels that no layer reads any more are cut from the layers that write them.
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
from pruning.methods.kse.kernel_consumers import Reader, ids_of, needed_ids
from pruning.methods.kse.kernel_indicator import Levels
from pruning.selection import Selection, select_channels
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.errors import BudgetError
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace
from spaces.widths import Widths

HALVINGS = 60  # of the multiplier's range


@dataclass(frozen=True)
class Outcome:
    """Levels of all channels of all readers, one after the other, and what follows from them."""

    levels: NDArray[np.int64]
    kept: NDArray[np.int64]  # kernels
    widths: Widths
    cost: Cost


class KernelSpace:
    """What levels of the channels of `readers` cost.

    Args:
        indicators: reader -> indicator of each of its input channels.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        readers: Sequence[Reader],
        indicators: Mapping[str, NDArray[np.float64]],
    ) -> None:
        self.space, self.readers = space, tuple(readers)
        self.indicators = np.concatenate([indicators[each.name] for each in readers])
        self._ids = np.concatenate([each.inputs for each in readers])
        self._reader = np.repeat(np.arange(len(readers)), [len(each.inputs) for each in readers])
        self._starts = np.cumsum([0, *[len(each.inputs) for each in readers]])
        self._needed = needed_ids(net, space, readers)
        barred = self._barred()
        self._needed[barred] = False
        self.indicators[barred[self._ids]] = -1.0
        self._price = np.array([each.positions * each.area for each in readers], dtype=np.int64)
        self._area = np.array([each.area for each in readers], dtype=np.int64)
        self._groups = np.array([each.groups for each in readers], dtype=np.int64)
        self._outputs = [_Axis.of(space, each.outputs) for each in readers]
        self._inputs = [_Axis.of(space, each.inputs) for each in readers]

    @cached_property
    def _best(self) -> NDArray[np.int64]:
        """The most important channel of every group of every reader: it keeps a kernel, so that no output is void."""
        best = []
        for reader, start in zip(self.readers, self._starts, strict=False):
            size = len(reader.inputs) // reader.groups
            best += [
                begin + int(self.indicators[begin : begin + size].argmax())
                for begin in range(start, start + len(reader.inputs), size)
            ]
        return np.array(best)

    def _barred(self) -> NDArray[np.bool_]:
        """Return, for every channel id, whether it goes because its group may not be as wide as in the dense net."""
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

    def levels(self, rule: Levels, multiplier: float) -> NDArray[np.int64]:
        """Return the level of every channel."""
        found = rule.of(self.indicators * multiplier)
        found[self._best] = np.maximum(found[self._best], rule.lowest)
        return found

    def outcome(self, rule: Levels, levels: NDArray[np.int64]) -> Outcome:
        """Return what levels lead to."""
        widths = self._widths(levels)
        outputs = np.array([axis.length(widths) for axis in self._outputs]) // self._groups
        inputs = np.array([axis.length(widths) for axis in self._inputs])
        kept = rule.kernels(levels, outputs[self._reader])
        # What the kernels of a reader are fewer than those of the plain layer.
        saved = outputs * inputs - np.add.reduceat(kept, self._starts[:-1])
        plain = self.space.cost(widths)
        flops, params = int((self._price * saved).sum()), int((self._area * saved).sum())
        return Outcome(levels, kept, widths, Cost(plain.flops - flops, plain.params - params))

    def _alive(self, levels: NDArray[np.int64]) -> NDArray[np.bool_]:
        alive = self._needed.copy()
        alive[self._ids[levels > 0]] = True
        return alive

    def _widths(self, levels: NDArray[np.int64]) -> Widths:
        alive = self._alive(levels)
        return Widths({group.name: _legal(group, alive[ids_of([group])]) for group in self.space.variable})

    def scores(self, levels: NDArray[np.int64]) -> Mapping[str, Tensor]:
        """Return group -> score of each channel by which to cut: those read come first, then by their indicator."""
        value = self._value + 2.0 * self._alive(levels)
        return {group.name: torch.from_numpy(value[ids_of([group])]) for group in self.space.variable}

    def by_reader(self, outcome: Outcome, selection: Selection) -> Iterator[tuple[Reader, NDArray[np.int64]]]:
        """Yield the kernels that each input channel keeps which is left of a reader once it is cut."""
        left = np.ones_like(self._needed)
        for name, index in selection.items():
            group = self.space.by_name[name]
            inside = np.isin(np.arange(group.width), index.numpy())
            left[group.start : group.start + group.width] = inside
        for reader, begin in zip(self.readers, self._starts, strict=False):
            yield reader, outcome.kept[begin : begin + len(reader.inputs)][left[reader.inputs]]

    def fit(self, rule: Levels, budgets: Sequence[Budget]) -> tuple[Outcome, float]:
        """Return the largest outcome within absolute budgets on FLOPs and parameters, and its multiplier.

        Raises:
            BudgetError: the smallest outcome is outside; the message gives its cost.
        """

        def tried(multiplier: float) -> Outcome:
            return self.outcome(rule, self.levels(rule, multiplier))

        least, positive = tried(0.0), self.indicators[self.indicators > 0]
        if usage(least.cost, budgets) > 1:
            raise BudgetError(
                f"sharing kernels on {rule.count} levels reaches {least.cost.flops:,} flops and {least.cost.params:,} "
                f"params at least, over the budget of {' and '.join(map(str, budgets))}; raise it"
            )
        low, high = 0.0, 1.0 / float(positive.min(initial=1.0))
        whole = self.outcome(rule, np.where(self.indicators >= 0, rule.count, 0))
        if usage(whole.cost, budgets) <= 1:
            return whole, high
        best = tried(high)
        if usage(best.cost, budgets) <= 1:
            return self._filled(rule, best, budgets), high
        best = least
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            outcome = tried(middle)
            if usage(outcome.cost, budgets) <= 1:
                low, best = middle, outcome
            else:
                high = middle
        return self._filled(rule, best, budgets), low

    def _filled(self, rule: Levels, outcome: Outcome, budgets: Sequence[Budget]) -> Outcome:
        """Raise single channels a level at a time while that fits; channels that are cut stay cut."""
        steps = np.array([0, *range(rule.lowest, rule.count + 1)])
        alive = self._alive(outcome.levels)
        levels, cost = outcome.levels.copy(), outcome.cost
        outputs = np.array([axis.length(outcome.widths) for axis in self._outputs]) // self._groups
        limits = {each.quantity: each.limit for each in budgets if each.quantity != "latency"}
        for _ in range(rule.count):
            after = steps[np.minimum(np.searchsorted(steps, levels, side="right"), len(steps) - 1)]
            with np.errstate(divide="ignore", invalid="ignore"):
                wanted = np.where(self.indicators > 0, rule.start(after) / self.indicators, np.inf)
            more = rule.kernels(after, outputs[self._reader]) - rule.kernels(levels, outputs[self._reader])
            raised = 0
            for i in np.argsort(wanted, kind="stable").tolist():
                if more[i] <= 0 or not alive[self._ids[i]]:
                    continue
                reader, extra = self._reader[i], int(more[i])
                new = Cost(cost.flops + extra * int(self._price[reader]), cost.params + extra * int(self._area[reader]))
                if all(getattr(new, name) <= limit for name, limit in limits.items()):
                    levels[i], cost, raised = after[i], new, raised + 1
            if not raised:
                break
        return self.outcome(rule, levels)


@dataclass(frozen=True)
class _Axis:
    """Length of an axis of a weight as a function of the widths."""

    constant: int
    times: tuple[tuple[str, int], ...]  # variable group, how often each of its channels is on the axis

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
    """Return the smallest legal width that keeps the living channels."""
    most = int(alive.reshape(group.conv_groups, -1).sum(axis=1).max()) * group.conv_groups
    width = ceil(max(most, group.lowest) / group.divisor) * group.divisor
    return min(width, group.ceiling)
