"""Approximated Oracle Filter Pruning. Ding, Ding, Guo, Han & Yan, ICML 2019, arXiv 1905.04748.

While the net trains, a second pass hides a random half of a layer's candidate channels from the layers that read them.
Halving finds, for all layers at once, the channels whose absence causes the smallest relative output error there, and
they are cut for good.

Differences from the authors' code:
- The second pass does not touch the running BatchNorm statistics.
- Widths are checked against the goal after every cut, and the last cut stops at the goal.
- A group keeps the space's minimum width and legal multiples, and retires after some searches without a cut.
- Layers that share their channels with others are cut too where internal layers would have to lose two thirds.
- Output errors that are not finite are left out.
- Groups tied by additions, products or concatenations are searched together, with the mean error at their consumers.
- A trial shorter than the published schedule shortens halves and warm-up by the same factor, and its search may take a
  fraction of an epoch. Channels that the goal still asks for at its deadline are cut at once.
- What that cut goes by is pooled over all halves (`pruning.methods.aofp.evidence`), and every batch hides further sets
  for it: random ones of an eighth of the channels, and the least damaging channels at several depths, from which found
  widths follow (`few_sets`).
- Layers that lose inputs in that cut are refitted by least squares (`compensate`).
- Groups start one after the other in the order of the groups that are searched, a half apart in all; theirs start in
  the order of all layers, searched or not, so that their starts span two halves in ResNet-56.
- Groups whose channels a LayerNorm or GroupNorm mixes are not cut, because no mask there equals the cut.
"""

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from pruning.allocation import usage
from pruning.base import Action, Context, Goal, Method, PruningError, Rates, Snapshot, TrainingState
from pruning.calibration.activation_moments import gather
from pruning.calibration.layer_calls import is_repeatable
from pruning.calibration.reconstruction import RECIPE, reconstruct
from pruning.methods.aofp.decimating_buffer import DecimatingBuffer
from pruning.methods.aofp.filter_search import FilterSearch, SearchGoal, SearchSchedule, scoring_turns
from pruning.methods.aofp.halving import HalvingRules
from pruning.methods.common_steps import finetune
from pruning.rewriting.narrowing import narrow_space
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from pruning.settings import setting
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace
from spaces.widths import Widths

logger = logging.getLogger(__name__)

# At most so many are held, twice as many as a trial measures: each takes as much memory as the net that is trained.
INTERMEDIATE_NETWORKS_PER_EPOCH = 4
HALVES = 12  # A search has time for at least so many halves; halves of the published length are shortened otherwise,
SHORTEST_HALF = 20  # but not to fewer batches, as few batches would cut a half that is good by chance.
IntermediateNetwork = tuple[nn.Module, Widths, int]  # with the number of moves so far

# The paper cuts internal layers alone. Where they would have to keep less than this share of their widths, the others
# are cut too: at 20% of the FLOPs of ResNet-20 (`glyphs`) that gave 52.3% against 40.8% (two seeds, two epochs).
INTERNAL_SHARE = 1 / 3


@dataclass(frozen=True)
class ApproximatedOracle(Method):
    """Find, while training, the channels whose absence changes the next layers' outputs least; cut those under theta.

    Within budgets, the search finds the widths. Given widths are reached exactly: each group stops at its own width.
    """

    theta: float = setting(
        0.01, low=1e-3, high=0.3, log=True, help="relative output error, of 1, that no channel of a cut may reach"
    )
    scope: str = setting(
        "internal",
        choices=("internal", "all"),
        help="layers with one writer and one consumer, others where a third of their widths is over the goal; or all",
    )
    learning_rate: float = setting(1e-3, low=1e-4, high=0.1, log=True, help="constant learning rate of the search")
    search_share: float = setting(0.125, low=0.05, high=0.9, help="share of the trial's training given to the search")
    half_batches: int = setting(
        1000, low=2, high=20000, searched=False, help="batches of a half, where the trial has enough of them"
    )
    warm_up_batches: int = setting(500, low=0, high=20000, searched=False, help="before the first half of 1000 batches")
    score_every: int = setting(1, low=1, high=10, searched=False, help="batches from one scored batch to the next")
    give_ups: int = setting(
        3, low=1, high=100, searched=False, help="consecutive searches without a cut after which a group retires"
    )
    few_sets: int = setting(
        7, low=0, high=20, searched=False, help="further sets of an eighth of the channels that every batch hides"
    )
    compensate: bool = setting(
        True, choices=(True, False), searched=False, help="refit the layers that lose inputs at the deadline"
    )

    name: ClassVar[str] = "aofp"
    paper: ClassVar[str] = "Ding et al., Approximated Oracle Filter Pruning, arXiv 1905.04748"
    needs: ClassVar[str] = "labelled training images, and at least one epoch to measure output errors in"
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings."""
        rules = (
            ("theta", self.theta >= 0, "at least 0"),
            ("scope", self.scope in ("internal", "all"), "internal or all"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("search_share", 0 < self.search_share <= 1, "in (0, 1]"),
            ("half_batches", self.half_batches >= 2, "at least 2"),
            ("warm_up_batches", self.warm_up_batches >= 0, "at least 0"),
            ("score_every", self.score_every >= 1, "at least 1"),
            ("give_ups", self.give_ups >= 1, "at least 1"),
            ("few_sets", self.few_sets >= 0, "at least 0"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise PruningError(f"setting {name}={getattr(self, name)!r} of aofp must be {rule}")

    def wide_epochs(self, epochs: int) -> float:
        """Return the largest number of a trial's epochs that the search takes; the net keeps its width in them."""
        return self.search_share * epochs

    def yields_intermediates(self, epochs: int) -> bool:
        """Return whether there is a search, whose moves make the intermediate networks."""
        return epochs > 0

    @override
    def run(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield intermediate networks, then the net that meets the goal: after its cut and after every epoch left.

        Raises:
            PruningError: nothing can be cut; the groups that may be cut cannot reach the goal; there are no epochs.
        """
        search_goal = search_goal_of(space, goal)
        if search_goal.reached(space.full):
            yield from finetune(copy.deepcopy(net), space.full, context, {"scope": "nothing to cut"})
            return
        targets, scope = self.targets(net, search_goal)
        if context.epochs < 1:
            raise PruningError("aofp finds channels while the net trains and has 0 epochs; give at least --epochs 1")
        epochs = self.wide_epochs(context.epochs)
        trained = copy.deepcopy(net).to(context.device)
        rules, schedule = self.schedule(targets, context, epochs)
        search = FilterSearch(trained, search_goal, targets, rules, schedule, context.seed)
        spent = 0.0
        for spent, intermediate_networks in _train(search, trained, context, epochs, self.learning_rate):
            for narrow, widths, moves in intermediate_networks:
                yield Snapshot(narrow, widths, math.floor(spent), {"moves": moves})
        narrow = self._cut(trained, search, context)
        yield from finetune(narrow, search.widths, context, self._note(search, scope), spent)

    def _cut(self, trained: nn.Module, search: FilterSearch, context: Context) -> nn.Module:
        """Return the net without the channels that moves have masked, and without those that the goal still asks for.

        The net was trained without the former, so that only the latter are missed and compensated.
        """
        moved = search.selection
        masked, space = slice_channels(trained, search.space, moved), narrow_space(search.space, moved)
        search.reach_goal()
        kept = {name: torch.searchsorted(before, search.selection[name]) for name, before in moved.items()}
        if all(len(kept[name]) == len(before) for name, before in moved.items()):
            return masked
        narrow = slice_channels(masked, space, kept)
        if self.compensate:
            reconstruct(narrow, masked, space, kept, gather(masked, space, RECIPE, context))
        return narrow

    def targets(self, net: nn.Module, goal: SearchGoal) -> tuple[tuple[ChannelGroup, ...], str]:
        """Return the groups to search, in the order of the layers that write them, and the name of their scope.

        Raises:
            PruningError: there are no such groups, or even their smallest widths do not meet the goal.
        """
        space = goal.space
        reasons = {group.name: reason for group in space.variable if (reason := unmaskable(net, space, group))}
        usable = [group for group in space.variable if group.name not in reasons]
        why = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
        if goal.widths is not None:
            wanted = [group for group in space.variable if goal.widths[group.name] < group.width]
            for group in wanted:
                if group.name in reasons:
                    raise PruningError(
                        f"aofp cannot narrow {group.name!r} to {goal.widths[group.name]}: {reasons[group.name]}; "
                        f"leave it at {group.width} (--skip) or take another method"
                    )
            return tuple(wanted), "given widths"
        internal = tuple(group for group in usable if is_internal(space, group))
        for scope, groups, share in (("internal", internal, INTERNAL_SHARE), ("all", tuple(usable), 0.0)):
            if groups and scope in (self.scope, "all") and _reachable(goal, groups, share):
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

    def schedule(
        self, targets: Sequence[ChannelGroup], context: Context, epochs: float
    ) -> tuple[HalvingRules, SearchSchedule]:
        """Return rules and schedule of a search of `epochs`: as published, or with all lengths shortened alike."""
        steps = max(1, round(epochs * context.steps_per_epoch))
        period = self.score_every * (1 + max(scoring_turns(targets).values()))
        room = steps // HALVES
        batches = min(self.half_batches, max(SHORTEST_HALF, room // period))
        warm_up = self.warm_up_batches * min(room // period, self.half_batches) // self.half_batches
        if batches < self.half_batches:
            logger.info("aofp: %d batches per half instead of %d, to fit %d steps", batches, self.half_batches, steps)
        rules = HalvingRules(self.theta, batches, self.give_ups, self.few_sets)
        return rules, SearchSchedule(warm_up, self.score_every, steps, spread=min(batches * period, room))

    def _note(self, search: FilterSearch, scope: str) -> Mapping[str, float | int | str | bool]:
        return {
            "scope": scope,
            "half_batches": search.rules.batches,
            "moves": search.moves,
            "give_ups": search.give_ups,
            "exhausted": sum(group.exhausted for group in search.groups.values()),
            # Channels cut to reach the goal, whether or not their output error is under theta.
            "deadline_cuts": search.deadline_cuts,
        }


def search_goal_of(space: SearchSpace, goal: Goal) -> SearchGoal:
    """Return the goal with exact widths or absolute budgets.

    Latency budgets are left out: a latency cannot be computed, it is measured outside the method.
    """
    if goal.widths is not None:
        space.check(goal.widths)
        return SearchGoal(space, widths=space.full | goal.widths)
    budgets = [budget.resolve(space.dense_cost) for budget in goal.budgets]
    return SearchGoal(space, budgets=tuple(budget for budget in budgets if budget.quantity != "latency"))


def is_internal(space: SearchSpace, group: ChannelGroup) -> bool:
    """Whether exactly one layer writes these channels and one reads them, not counting depthwise layers in between."""
    writers = [name for name in group.producers if not space.layers[name].depthwise]
    return len(writers) == 1 and len(group.consumers) == 1


def unmaskable(net: nn.Module, space: SearchSpace, group: ChannelGroup) -> str:
    """Return why hiding these channels from their consumers is not the same as cutting them; empty if it is."""
    if not group.consumers:
        return "no layer reads these channels"
    for name in group.consumers:
        if not is_repeatable(net, space.layers[name]):
            return f"{name} reads them and is no plain convolution or linear layer"
    for name, module in net.named_modules():
        ids = space.axes.get(f"{name}.weight", {}).get(0)
        mixes = isinstance(module, nn.LayerNorm | nn.GroupNorm)
        if mixes and ids is not None and ((ids >= group.start) & (ids < group.start + group.width)).any():
            return f"{name} normalises across them"
    return ""


def _smallest(space: SearchSpace, groups: Sequence[ChannelGroup], share: float = 0.0) -> Widths:
    """Return the widths with which each of the groups has this share of its channels, or its lowest width."""
    return space.full | {group.name: max(group.lowest, round(share * group.width)) for group in groups}


def _reachable(goal: SearchGoal, groups: Sequence[ChannelGroup], share: float) -> bool:
    smallest = _smallest(goal.space, groups, share)
    return goal.within_ceilings(smallest) and usage(goal.space.cost(smallest), goal.budgets) <= 1


def _train(
    search: FilterSearch, net: nn.Module, context: Context, epochs: float, rate: float
) -> Iterator[tuple[float, list[IntermediateNetwork]]]:
    """Train until the search is finished; after every epoch yield the epochs so far and its intermediate networks.

    The cuts of one batch make one intermediate network, yielded with its widths and the number of moves so far. Its
    BatchNorm statistics are those of training up to the cut. Of the cuts in an epoch, at most
    `INTERMEDIATE_NETWORKS_PER_EPOCH` are made into networks, evenly spaced in log cost.
    """
    narrowing = _Narrowing(search, net)
    search.attach()
    try:
        action = Action(narrowing.after_batch, state=narrowing)
        for epoch in context.fit(net, epochs, action, rates=Rates(constant=rate)):
            yield min(epoch, epochs), narrowing.drain()
            if search.finished:
                return
    finally:
        search.detach()


class _Narrowing(TrainingState):
    """What a search does to the network in training, and the intermediate networks of the epoch."""

    def __init__(self, search: FilterSearch, net: nn.Module) -> None:
        self._search, self._net = search, net
        cost = search.space.cost(search.widths).flops
        self._found = DecimatingBuffer[IntermediateNetwork](INTERMEDIATE_NETWORKS_PER_EPOCH, cost)

    def drain(self) -> list[IntermediateNetwork]:
        """Return the intermediate networks since the last call."""
        return self._found.drain()

    def after_batch(self, trained: nn.Module, _step: int) -> None:
        """Let the search go on after a batch, and keep the network that its cuts make; a `StepHook`."""
        search = self._search
        cuts = search.after_batch()
        if not cuts or not search.is_intermediate:  # a net that meets the goal is trained on and becomes the result
            return
        cost = search.space.cost(cuts[-1]).flops
        if self._found.wants(cost):
            search.detach()
            narrow = slice_channels(trained, search.space, search.selection)
            narrow = narrow.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            self._found.add(cost, (narrow, cuts[-1], search.moves))
            search.attach()

    @override
    def state_dict(self) -> dict[str, Any]:
        found = [(net.state_dict(), dict(widths), moves) for net, widths, moves in self._found.items]
        return {"search": self._search.state_dict(), "gaps": self._found.gaps, "found": found}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._search.load_state_dict(state["search"])
        self._search.detach()
        self._found.restore(state["gaps"], [self._network(*parts) for parts in state["found"]])
        self._search.attach()

    def _network(self, weights: dict[str, Tensor], widths: dict[str, int], moves: int) -> IntermediateNetwork:
        space = self._search.space
        scores = {group.name: torch.zeros(group.width) for group in space.variable}
        narrow = slice_channels(self._net, space, select_channels(space, scores, widths))
        narrow.load_state_dict(weights)
        return narrow, Widths(widths), moves
