"""Approximated Oracle Filter Pruning. Ding, Ding, Guo, Han & Yan, ICML 2019, arXiv 1905.04748.

While the net trains, a second pass hides a random half of a layer's candidate channels from the layers that read
them; halving finds, for all layers at once, the channels that do least damage there, and they are cut for good.

Where this differs from the authors' code: running BatchNorm statistics are not touched by the second pass; widths are
checked against the goal after every cut, and the last cut stops at it; a group keeps the space's minimum width and
legal multiples, and retires after some searches in vain; damage that is not finite is left out; groups tied by
additions, products or concatenations are searched as one, with the mean damage at all their readers; a trial shorter
than the published schedule shortens halves and warm-up alike, and what the goal still asks for when the time of the
search is up is cut at once, by what each channel is estimated to cost all its readers. Groups whose channels a
LayerNorm or GroupNorm mixes are left alone, because no mask there equals the cut.
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from pruning.allocation import usage
from pruning.base import Context, Goal, PruningError, Snapshot
from pruning.methods.aofp.decimating_buffer import Thinned
from pruning.methods.aofp.filter_search import Aim, FilterSearch, Pace, turns
from pruning.methods.aofp.halving import Rules
from pruning.methods.aofp.output_error import readable
from pruning.rewriting.surgery import slice_channels
from pruning.settings import setting
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace
from spaces.widths import Widths

logger = logging.getLogger(__name__)

PASSED_AN_EPOCH = 4  # nets on the way, twice what a trial measures: each weighs as much as the net that is trained
HALVES = 12  # that the time of a search has room for: as published, or halves become shorter


@dataclass(frozen=True)
class ApproximatedOracle:
    """Find, while training, the channels whose absence the next layers notice least, and cut those under theta.

    Widths are an outcome within budgets; given widths are reached exactly, each group stopping at its own.
    """

    theta: float = setting(0.01, low=1e-3, high=0.3, log=True, help="damage, of 1, that no channel of a cut may reach")
    scope: str = setting(
        "internal",
        choices=("internal", "all"),
        help="layers with one writer and one reader, others only if the goal cannot be met without; or all at once",
    )
    learning_rate: float = setting(
        1e-3, low=1e-4, high=0.1, log=True, help="constant rate of the search; unused where it takes every epoch"
    )
    search_share: float = setting(0.5, low=0.2, high=0.9, help="share of the trial's training given to the search")
    half_batches: int = setting(1000, low=2, high=20000, searched=False, help="batches of a half, where there is room")
    warm_up_batches: int = setting(500, low=0, high=20000, searched=False, help="before the first half of 1000 batches")
    score_every: int = setting(1, low=1, high=10, searched=False, help="batches from one that is scored to the next")
    give_ups: int = setting(3, low=1, high=100, searched=False, help="searches in vain after which a group retires")

    name: ClassVar[str] = "aofp"
    paper: ClassVar[str] = "Ding et al., Approximated Oracle Filter Pruning, arXiv 1905.04748"
    needs: ClassVar[str] = "labelled training images, and at least one epoch to measure damage in"
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        rules = (
            ("theta", self.theta >= 0, "at least 0"),
            ("scope", self.scope in ("internal", "all"), "internal or all"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("search_share", 0 < self.search_share <= 1, "in (0, 1]"),
            ("half_batches", self.half_batches >= 2, "at least 2"),
            ("warm_up_batches", self.warm_up_batches >= 0, "at least 0"),
            ("score_every", self.score_every >= 1, "at least 1"),
            ("give_ups", self.give_ups >= 1, "at least 1"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise PruningError(f"setting {name}={getattr(self, name)!r} of aofp must be {rule}")

    def prepare(self, net: nn.Module, space: SearchSpace, context: Context) -> Any:
        """Need nothing."""
        return None

    def wide_epochs(self, epochs: int) -> int:
        """Return how many of a trial's epochs the search has at most; channels are hidden in it, not yet cut."""
        return max(min(1, epochs), min(int(self.search_share * epochs + 1e-9), epochs - 1))

    def yields_intermediates(self, epochs: int) -> bool:
        """Return whether there is a search, each move of which is a net."""
        return epochs > 0

    def run(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield nets on the way, then the net of the goal after it was cut and after every epoch left.

        Raises:
            PruningError: nothing can be cut; widths or budgets that no cut of what may be cut can reach; no epochs.
        """
        aim = aimed(space, goal)
        if aim.reached(space.full):
            yield from _finished(copy.deepcopy(net), space.full, context, 0, {"scope": "nothing to cut"})
            return
        targets, scope = self.targets(net, aim)
        if context.epochs < 1:
            raise PruningError("aofp finds channels while the net trains and has 0 epochs; give at least --epochs 1")
        epochs = self.wide_epochs(context.epochs)
        trained = copy.deepcopy(net).to(context.device)
        settings = self.paced(targets, context, epochs)
        search = FilterSearch(trained, aim, targets, settings, context.seed)
        spent = 0
        for spent, passed in _train(search, trained, context, epochs, self.learning_rate):
            for narrow, widths, moves in passed:
                yield Snapshot(narrow, widths, spent, {"moves": moves})
        narrow = slice_channels(trained, space, search.selection)
        yield from _finished(narrow, search.widths, context, spent, self._note(search, scope))

    def targets(self, net: nn.Module, aim: Aim) -> tuple[tuple[ChannelGroup, ...], str]:
        """Return the groups to search, in the order of the layers that write them, and the scope they come from.

        Raises:
            PruningError: there are none, or even their smallest widths are too wide for the goal.
        """
        space = aim.space
        reasons = {group.name: reason for group in space.variable if (reason := unmaskable(net, space, group))}
        usable = [group for group in space.variable if group.name not in reasons]
        why = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
        if aim.widths is not None:
            wanted = [group for group in space.variable if aim.widths[group.name] < group.width]
            for group in wanted:
                if group.name in reasons:
                    raise PruningError(
                        f"aofp cannot narrow {group.name!r} to {aim.widths[group.name]}: {reasons[group.name]}; "
                        f"leave it at {group.width} (--skip) or take another method"
                    )
            return tuple(wanted), "given widths"
        internal = tuple(group for group in usable if is_internal(net, group))
        for scope, groups in (("internal", internal), ("all", tuple(usable))):
            if groups and scope in (self.scope, "all") and _reachable(aim, groups):
                return groups, scope
        if not usable:
            raise PruningError(
                f"this net has nothing that aofp can cut ({why or 'no group of it may vary'}); take another method"
            )
        smallest = space.cost(_smallest(space, usable))
        raise PruningError(
            f"the smallest net that aofp can make has {smallest.flops:,} flops and {smallest.params:,} params, over "
            f"the budget ({why or 'every group at its lowest'}); raise the budget or lower --floor"
        )

    def paced(self, targets: Sequence[ChannelGroup], context: Context, epochs: int) -> tuple[Rules, Pace]:
        """Return the schedule for a search of so many epochs: the published one, or all of it shortened alike."""
        steps = epochs * context.steps_per_epoch
        if epochs == context.epochs:  # no epoch is left to train the narrow net, so the last batches do
            steps = max(1, round(self.search_share * steps))
        period = self.score_every * (1 + max(turns(targets).values()))
        batches = min(self.half_batches, max(2, steps // (HALVES * period)))
        warm_up = self.warm_up_batches * batches // self.half_batches
        if batches < self.half_batches:
            logger.info("aofp: %d batches per half instead of %d, to fit %d steps", batches, self.half_batches, steps)
        return Rules(self.theta, batches, self.give_ups), Pace(warm_up, self.score_every, steps)

    def _note(self, search: FilterSearch, scope: str) -> Mapping[str, float | int | str | bool]:
        return {
            "scope": scope,
            "half_batches": search.rules.batches,
            "moves": search.moves,
            "give_ups": search.give_ups,
            "exhausted": sum(group.exhausted for group in search.groups.values()),
            "deadline_cuts": search.deadline_cuts,  # channels cut to reach the goal, not because damage was under theta
        }


def aimed(space: SearchSpace, goal: Goal) -> Aim:
    """Turn a goal into what the search must reach; a latency cannot be computed and is left to who measures it."""
    if goal.widths is not None:
        space.check(goal.widths)
        return Aim(space, widths=space.full | goal.widths)
    budgets = [budget.resolve(space.dense_cost) for budget in goal.budgets]
    return Aim(space, budgets=tuple(budget for budget in budgets if budget.quantity != "latency"))


def is_internal(net: nn.Module, group: ChannelGroup) -> bool:
    """Whether one layer writes these channels and one reads them; depthwise layers in between do not count."""
    writers = [name for name in group.producers if not _is_depthwise(net.get_submodule(name))]
    return len(writers) == 1 and len(group.consumers) == 1


def unmaskable(net: nn.Module, space: SearchSpace, group: ChannelGroup) -> str:
    """Say why hiding these channels from their readers is not the same as cutting them; empty when it is."""
    if not group.consumers:
        return "no layer reads these channels"
    for name in group.consumers:
        if not readable(net, name):
            return f"{name} reads them and is no plain convolution or linear layer"
    for name, module in net.named_modules():
        ids = space.axes.get(f"{name}.weight", {}).get(0)
        mixes = isinstance(module, nn.LayerNorm | nn.GroupNorm)
        if mixes and ids is not None and ((ids >= group.start) & (ids < group.start + group.width)).any():
            return f"{name} normalises across them"
    return ""


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels


def _smallest(space: SearchSpace, groups: Sequence[ChannelGroup]) -> Widths:
    return space.full | {group.name: group.lowest for group in groups}


def _reachable(aim: Aim, groups: Sequence[ChannelGroup]) -> bool:
    smallest = _smallest(aim.space, groups)
    return aim.within_ceilings(smallest) and usage(aim.space.cost(smallest), aim.budgets) <= 1


def _train(
    search: FilterSearch, net: nn.Module, context: Context, epochs: int, rate: float
) -> Iterator[tuple[int, list[tuple[nn.Module, Widths, int]]]]:
    """Train until the search is over; yield the number of finished epochs and the cuts in the last one.

    Cuts of one batch make one net, given with its widths and the number of moves so far. Its BatchNorm statistics are
    those of training up to the cut. Of many in an epoch, `PASSED_AN_EPOCH` at most are made and held, evenly in log
    cost.
    """
    passed = Thinned[tuple[nn.Module, Widths, int]](PASSED_AN_EPOCH, search.space.cost(search.widths).flops)

    def after_batch(trained: nn.Module, step: int) -> None:
        cuts = search.after_batch()
        if not cuts or not search.passing:  # where the goal is reached, training goes on and ends in the result
            return
        cost = search.space.cost(cuts[-1]).flops
        if passed.wants(cost):
            search.detach()
            narrow = slice_channels(trained, search.space, search.selection)
            narrow = narrow.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            passed.add(cost, (narrow, cuts[-1], search.moves))
            search.attach()

    whole = epochs == context.epochs
    search.attach()
    try:
        for epoch in context.fit(net, epochs, after_batch, learning_rate=None if whole else rate):
            yield epoch, passed.hand_over()
            if search.over and not whole:
                return
    finally:
        search.detach()


def _finished(
    narrow: nn.Module, widths: Widths, context: Context, spent: int, note: Mapping[str, float | int | str | bool]
) -> Iterator[Snapshot]:
    """Train the narrow net for the epochs that are left; one snapshot before and per epoch."""
    context.reestimate_batchnorm(narrow)
    yield Snapshot(narrow, widths, spent, note)
    if spent < context.epochs:
        for epoch in context.fit(narrow, context.epochs - spent):
            yield Snapshot(narrow, widths, spent + epoch, note)
