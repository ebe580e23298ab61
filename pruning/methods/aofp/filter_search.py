"""Search all groups of a net at once for channels to cut, while it trains, until a goal is reached. AOFP's search.

Each group halves on its own (`pruning.methods.aofp.halving`); what they share is the net they damage (`pruning.methods.aofp.output_error`), the
steps at which their halves begin, and the budgets. Ding et al., ICML 2019, arXiv 1905.04748.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.allocation import allocate, usage
from pruning.methods.aofp.halving import Decision, Halving, Rules
from pruning.methods.aofp.output_error import DamagePath, find_readers
from pruning.selection import Selection, select_channels
from spaces.budget import Budget
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace
from spaces.widths import Widths


@dataclass(frozen=True)
class Aim:
    """What a search must reach: exact widths, or absolute budgets. Without either it ends when time is up.

    Attributes:
        budgets: on FLOPs and parameters only.
    """

    space: SearchSpace
    widths: Widths | None = None
    budgets: tuple[Budget, ...] = ()

    @property
    def open(self) -> bool:
        """Whether nothing but the thresholds decides how narrow the net becomes."""
        return self.widths is None and not self.budgets and self.within_ceilings(self.space.full)

    def reached(self, widths: Mapping[str, int]) -> bool:
        """Whether a net of these widths, of all variable groups, is narrow enough."""
        if self.widths is not None:
            return all(widths[name] == width for name, width in self.widths.items())
        return not self.open and self.within_ceilings(widths) and usage(self.space.cost(widths), self.budgets) <= 1

    def within_ceilings(self, widths: Mapping[str, int]) -> bool:
        """Whether no group is wider than the space allows."""
        return all(widths[group.name] <= group.ceiling for group in self.space.variable)

    def lowest(self, group: ChannelGroup) -> int:
        """Width under which a group must not fall."""
        return group.lowest if self.widths is None else self.widths[group.name]


@dataclass(frozen=True)
class Pace:
    """When groups are scored.

    Attributes:
        warm_up: steps before the first half.
        every: steps from one scored batch to the next.
        deadline: steps after which whatever the goal still asks for is cut at once.
    """

    warm_up: int
    every: int
    deadline: int


class FilterSearch:
    """The search in a net that is being trained: call `attach`, train with `after_batch` as hook, then `detach`.

    All state is in `state_dict`, so that a search continues exactly where it was interrupted.

    Args:
        net: is trained with hooks on it; its weights are read, never written.
        aim: with the space that the net was traced to.
        targets: the groups that may be cut.
        rules: of every group.
        pace: of all.
        seed: of the draws.
    """

    def __init__(
        self, net: nn.Module, aim: Aim, targets: Sequence[ChannelGroup], settings: tuple[Rules, Pace], seed: int
    ) -> None:
        self.space, self._aim = aim.space, aim
        self.rules, self.pace = settings
        self.deadline_cuts = 0  # channels cut because time was up, not because they were found harmless
        self.moves = 0
        self.give_ups = 0
        self._step = 0
        device = next(net.parameters()).device
        self.groups = {
            group.name: Halving(group, aim.lowest(group), self.rules, seed + index, device)
            for index, group in enumerate(targets)
        }
        self._turns = turns(targets)
        self._period = self.pace.every * (1 + max(self._turns.values()))
        names = dict.fromkeys(reader for group in targets for reader in group.consumers)
        readers = find_readers(net, self.space, names)
        self._channels = sum(group.width for group in self.space.groups)
        self._path = DamagePath(net, readers)
        self._prepare()

    @property
    def widths(self) -> Widths:
        """How many channels of every variable group are alive."""
        return self.space.full | {name: group.width for name, group in self.groups.items()}

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return self._aim.reached(self.widths)

    @property
    def passing(self) -> bool:
        """Whether the net as it is now is a legal one on the way to the goal."""
        return self._aim.within_ceilings(self.widths) and not self.reached

    @property
    def over(self) -> bool:
        """Whether nothing is scored any more."""
        return self.reached or self._step >= self.pace.deadline or all(g.retired for g in self.groups.values())

    @property
    def selection(self) -> Selection:
        """The channels that are alive."""
        return {name: group.alive.nonzero().flatten() for name, group in self.groups.items()}

    def attach(self) -> None:
        """Put the masks and the second pass on the net."""
        self._path.attach()

    def detach(self) -> None:
        """Take them off."""
        self._path.detach()

    def after_batch(self) -> list[Widths]:
        """Credit the damage of the batch just computed and prepare the next; return the widths after every cut."""
        if self.over and not self._pending:
            return []
        damages = self._path.damages()
        cuts: list[Widths] = []
        for name in self._pending:
            group = self.groups[name]
            read = [damages[reader] for reader in group.group.consumers if reader in damages]
            if read and not group.retired:
                group.add(torch.stack(read).mean())
                if group.complete:
                    cuts += self._end_half(group)
        self._step += 1
        if self.over and not self.reached and not self._aim.open:
            cuts.append(self.reach_goal())
        self._prepare()
        return cuts

    def reach_goal(self) -> Widths:
        """Cut at once what the goal still asks for, by the damage measured so far, and return the widths.

        Widths within budgets come from `allocate` on the damage that each group's least damaging channels add up to.
        """
        before = sum(group.width for group in self.groups.values())
        for group in self.groups.values():
            group.learn()
        widths = self._aim.widths if self._aim.widths is not None else self._allocated()
        scores = {name: self._scores(group) for name, group in self.groups.items()}
        wanted = {name: widths[name] for name in self.groups}
        for name, kept in select_channels(self.space, scores, wanted).items():
            self.groups[name].keep(kept)
        self.deadline_cuts += before - sum(group.width for group in self.groups.values())
        self._mask()
        return self.widths

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the search has found and drawn, as tensors and numbers."""
        numbers = ("_step", "moves", "give_ups", "deadline_cuts")
        groups = {name: group.state_dict() for name, group in self.groups.items()}
        return {name.strip("_"): getattr(self, name) for name in numbers} | {"groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken, on a net in the state that it then had."""
        self._step, self.moves = state["step"], state["moves"]
        self.give_ups, self.deadline_cuts = state["give_ups"], state["deadline_cuts"]
        for name, group in self.groups.items():
            group.load_state_dict(state["groups"][name])
        self._mask()
        self._prepare()

    def _end_half(self, group: Halving) -> list[Widths]:
        decision, best = group.decide()
        self.give_ups += decision is Decision.GIVE_UP
        if decision is not Decision.MOVE or self.reached:
            return []
        group.cut(best, group.width - self._width_to(group))
        self.moves += 1
        self._mask()
        return [self.widths]

    def _width_to(self, group: Halving) -> int:
        """Return the widest legal width that reaches the goal; where none does, the narrowest the half has found."""
        widths = self.widths
        narrowest = group.width_after(group.hidden)
        for cut in range(1, group.width - narrowest):
            width = group.width_after(cut)
            if width < group.width and self._aim.reached(widths | {group.group.name: width}):
                return width
        return narrowest

    def _prepare(self) -> None:
        """Draw for the next batch, for the groups whose turn it is."""
        self._pending = [name for index, name in enumerate(self.groups) if self._due(index, name)]
        if self.over:
            self._pending = []
        active = [self.groups[name] for name in self._pending]
        self._path.hide((each.group, each.drawn) for each in active)

    def _due(self, index: int, name: str) -> bool:
        """Starts are staggered, so that halves of neighbouring layers do not end together."""
        stagger = self.rules.batches * self._period // len(self.groups)
        turn = (self._step // self.pace.every) % (1 + max(self._turns.values()))
        started = self._step >= self.pace.warm_up + index * stagger
        on_turn = self._step % self.pace.every == 0 and turn == self._turns[name]
        return started and on_turn and not self.groups[name].retired

    def _mask(self) -> None:
        alive = torch.ones(self._channels, dtype=torch.bool)
        for each in self.groups.values():
            alive[each.group.start : each.group.start + each.group.width] = each.alive
        self._path.keep(alive)

    def _scores(self, group: Halving) -> Tensor:
        """Return what is kept first: the most damaging, and the dead last."""
        return torch.where(group.alive, group.damage, group.damage.min() - 1)

    def _allocated(self) -> Widths:
        """Return widths within the budgets and not above those of the search, from what is cut and all who read it."""
        curves, groups = {}, []
        for group in self.space.groups:
            search = self.groups.get(group.name)
            width = group.width if search is None else min(search.width, group.ceiling)
            lost = np.zeros(group.width + 1)
            if search is not None:
                # Credited is the mean over the readers, and what is cut is missed by each of them.
                damage = search.damage[search.alive].clamp(min=0) * len(search.group.consumers)
                costs = damage.sort().values.cumsum(0).flip(0)
                lost[: len(costs)] = costs.numpy()
            curves[group.name] = lost
            floor = width if search is None else min(group.floor, width)
            groups.append(dataclasses.replace(group, ceiling=width, floor=floor))
        narrowed = dataclasses.replace(self.space, groups=tuple(groups))
        return allocate(narrowed, curves, self._aim.budgets)


def turns(groups: Sequence[ChannelGroup]) -> dict[str, int]:
    """Number the groups so that no layer reads two of one number: those of one number are scored together.

    Hidden channels of two groups in one layer, as after a concatenation, could not be told apart by their damage.
    """
    found: dict[str, int] = {}
    taken: dict[str, set[int]] = {}
    for group in groups:
        used = set().union(*(taken.get(reader, set()) for reader in group.consumers))
        found[group.name] = next(turn for turn in range(len(groups)) if turn not in used)
        for reader in group.consumers:
            taken.setdefault(reader, set()).add(found[group.name])
    return found
