"""Search all channel groups of a net at once for channels to cut, while the net trains, until a goal is reached.

Every group halves its candidates on its own (`pruning.methods.aofp.halving`). The groups share the net whose output
errors are measured (`pruning.methods.aofp.output_error`), the schedule and the budgets. This is the search of Ding et
al., ICML 2019 (AOFP), arXiv 1905.04748.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.allocation import allocate, usage
from pruning.methods.aofp.halving import Decision, Halving, HalvingRules
from pruning.methods.aofp.output_error import ScoringPath, find_consumers
from pruning.selection import Selection, select_channels
from spaces.budget import Budget
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace
from spaces.widths import Widths

LEAST_LEFT = 1e-3  # of a consumer's output


@dataclass(frozen=True)
class SearchGoal:
    """What a search must reach: exact widths, or absolute budgets. With neither, the search runs to its deadline.

    Attributes:
        budgets: on FLOPs and parameters only.
    """

    space: SearchSpace
    widths: Widths | None = None
    budgets: tuple[Budget, ...] = ()

    @property
    def unlimited(self) -> bool:
        """Whether the thresholds alone decide how narrow the net becomes."""
        return self.widths is None and not self.budgets and self.within_ceilings(self.space.full)

    def reached(self, widths: Mapping[str, int]) -> bool:
        """Whether a net of these widths meets the goal; `widths` names all variable groups."""
        if self.widths is not None:
            return all(widths[name] == width for name, width in self.widths.items())
        return not self.unlimited and self.within_ceilings(widths) and usage(self.space.cost(widths), self.budgets) <= 1

    def within_ceilings(self, widths: Mapping[str, int]) -> bool:
        """Whether no group is wider than the space allows."""
        return all(widths[group.name] <= group.ceiling for group in self.space.variable)

    def lowest(self, group: ChannelGroup) -> int:
        """Return the smallest width that the group may get."""
        return group.lowest if self.widths is None else self.widths[group.name]


@dataclass(frozen=True)
class SearchSchedule:
    """The training steps at which groups are scored.

    Attributes:
        warm_up: steps before the first half.
        every: steps from one scored batch to the next.
        deadline: steps after which the search ends.
        spread: steps from the start of the first group to that of one after the last.
    """

    warm_up: int
    every: int
    deadline: int
    spread: int = 0


class FilterSearch:
    """The search in a net that is being trained: call `attach`, train with `after_batch` as hook, then `detach`.

    All state is in `state_dict`, so that a search continues exactly where it was interrupted.

    Args:
        net: is trained with hooks on it; the search reads its weights and never writes them.
        goal: holds the space that the net was traced to.
        targets: the groups that may be cut.
        rules: apply to every group.
        schedule: applies to all groups.
        seed: of the random draws.
    """

    def __init__(
        self,
        net: nn.Module,
        goal: SearchGoal,
        targets: Sequence[ChannelGroup],
        rules: HalvingRules,
        schedule: SearchSchedule,
        seed: int,
    ) -> None:
        self.space, self._goal = goal.space, goal
        self.rules, self.schedule = rules, schedule
        self.deadline_cuts = 0  # channels cut at the deadline, whatever their output error
        self.moves = 0
        self.give_ups = 0
        self._step = 0
        device = next(net.parameters()).device
        self.groups = {
            group.name: Halving(group, goal.lowest(group), rules, seed + index, device)
            for index, group in enumerate(targets)
        }
        self._turns = scoring_turns(targets)
        names = dict.fromkeys(consumer for group in targets for consumer in group.consumers)
        self._channels = sum(group.width for group in self.space.groups)
        self._path = ScoringPath(net, find_consumers(net, self.space, names))
        self._prepare_batch()

    @property
    def widths(self) -> Widths:
        """The number of channels of every variable group that are alive."""
        return self.space.full | {name: group.width for name, group in self.groups.items()}

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return self._goal.reached(self.widths)

    @property
    def is_intermediate(self) -> bool:
        """Whether the net has legal widths and does not meet the goal yet."""
        return self._goal.within_ceilings(self.widths) and not self.reached

    @property
    def finished(self) -> bool:
        """Whether no group is scored any more."""
        return self.reached or self._step >= self.schedule.deadline or all(g.retired for g in self.groups.values())

    @property
    def selection(self) -> Selection:
        """The channels that are alive."""
        return {name: group.alive.nonzero().flatten() for name, group in self.groups.items()}

    def attach(self) -> None:
        """Put the hooks that mask and score channels on the net."""
        self._path.attach()

    def detach(self) -> None:
        """Take the hooks off the net."""
        self._path.detach()

    def after_batch(self) -> list[Widths]:
        """Credit the output errors of the last batch and prepare the next one.

        Returns:
            The widths after every cut that this batch led to.
        """
        if self.finished and not self._scored_groups:
            return []
        errors = self._path.relative_errors()
        cuts: list[Widths] = []
        for name in self._scored_groups:
            group = self.groups[name]
            measured = [errors[consumer] for consumer in group.group.consumers if consumer in errors]
            if measured and not group.retired:
                group.credit(torch.stack(measured).mean(dim=0))
                if group.complete:
                    cuts += self._end_half(group)
        self._step += 1
        self._prepare_batch()
        return cuts

    def reach_goal(self) -> Widths:
        """Cut at once as many channels as the goal still asks for, by rising estimated damage.

        Nothing is cut where the goal is reached or is none. Widths within budgets come from `allocate`.

        Returns:
            The widths after the cut.
        """
        if self.reached or self._goal.unlimited:
            return self.widths
        before = sum(group.width for group in self.groups.values())
        widths = self._goal.widths if self._goal.widths is not None else self._allocated()
        scores = {name: self._scores(group) for name, group in self.groups.items()}
        wanted = {name: widths[name] for name in self.groups}
        for name, kept in select_channels(self.space, scores, wanted).items():
            self.groups[name].keep(kept)
        self.deadline_cuts += before - sum(group.width for group in self.groups.values())
        self._mask()
        return self.widths

    def state_dict(self) -> dict[str, Any]:
        """Return all that the search has measured and drawn, as tensors and numbers."""
        numbers = ("_step", "moves", "give_ups", "deadline_cuts")
        groups = {name: group.state_dict() for name, group in self.groups.items()}
        return {name.strip("_"): getattr(self, name) for name in numbers} | {"groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned; the net must be in the state that it had then."""
        self._step, self.moves = state["step"], state["moves"]
        self.give_ups, self.deadline_cuts = state["give_ups"], state["deadline_cuts"]
        for name, group in self.groups.items():
            group.load_state_dict(state["groups"][name])
        self._mask()
        self._prepare_batch()

    def _end_half(self, group: Halving) -> list[Widths]:
        decision, best = group.decide()
        self.give_ups += decision is Decision.GIVE_UP
        if decision is not Decision.MOVE or self.reached:
            return []
        group.cut(best, group.width - self._width_after_move(group))
        self.moves += 1
        self._mask()
        return [self.widths]

    def _width_after_move(self, group: Halving) -> int:
        """Return the largest legal width at which the goal is reached; if there is none, the width after a full cut."""
        widths = self.widths
        narrowest = group.width_after(group.hidden)
        for cut in range(1, group.width - narrowest):
            width = group.width_after(cut)
            if width < group.width and self._goal.reached(widths | {group.group.name: width}):
                return width
        return narrowest

    def _prepare_batch(self) -> None:
        """Choose the groups that the next batch scores, and hide the channels drawn for them."""
        due = [name for index, name in enumerate(self.groups) if self._due(index, name)]
        self._scored_groups = [] if self.finished else due
        scored = [self.groups[name] for name in self._scored_groups]
        self._path.hide((group.group, group.sets) for group in scored)

    def _due(self, index: int, name: str) -> bool:
        """Whether the next batch scores a group.

        Groups start one after the other, so that the halves of neighbouring layers do not end together.
        """
        late = index * self.schedule.spread // len(self.groups)
        turn = (self._step // self.schedule.every) % (1 + max(self._turns.values()))
        started = self._step >= self.schedule.warm_up + late
        on_turn = self._step % self.schedule.every == 0 and turn == self._turns[name]
        return started and on_turn and not self.groups[name].retired

    def _mask(self) -> None:
        alive = torch.ones(self._channels, dtype=torch.bool)
        for group in self.groups.values():
            alive[group.group.start : group.group.start + group.group.width] = group.alive
        self._path.keep(alive)

    def _scores(self, group: Halving) -> Tensor:
        """Return scores by which channels of a large damage are kept first, and dead channels last."""
        shares = group.shares()
        return torch.where(group.alive, shares, shares.min() - 1)

    def _allocated(self) -> Widths:
        """Return widths within the budgets, none above that of the search, by the damage at all consumers.

        With the error e of a consumer, 1 - e of its output is left. Layers one after the other leave the product, so
        that groups are compared by -log(1 - e), which grows without bound as a group loses all that its consumers see.
        """
        curves, groups = {}, []
        for group in self.space.groups:
            search = self.groups.get(group.name)
            width = group.width if search is None else min(search.width, group.ceiling)
            lost = np.zeros(group.width + 1)
            if search is not None:
                left = np.maximum(1 - search.damages(), LEAST_LEFT)
                # An error is the mean over the consumers, but each of them loses the channels that are cut.
                lost[: len(left)] = -np.log(left)[::-1] * len(search.group.consumers)
            curves[group.name] = lost
            floor = width if search is None else min(group.floor, width)
            groups.append(dataclasses.replace(group, ceiling=width, floor=floor))
        narrowed = dataclasses.replace(self.space, groups=tuple(groups))
        return allocate(narrowed, curves, self._goal.budgets)


def scoring_turns(groups: Sequence[ChannelGroup]) -> dict[str, int]:
    """Number the groups so that no layer reads two groups of one number; groups of one number are scored together.

    Where one layer reads hidden channels of two groups, as after a concatenation, its output error would not tell
    their shares apart.
    """
    turn_of: dict[str, int] = {}
    taken: dict[str, set[int]] = {}
    for group in groups:
        used = set().union(*(taken.get(consumer, set()) for consumer in group.consumers))
        turn_of[group.name] = next(turn for turn in range(len(groups)) if turn not in used)
        for consumer in group.consumers:
            taken.setdefault(consumer, set()).add(turn_of[group.name])
    return turn_of
