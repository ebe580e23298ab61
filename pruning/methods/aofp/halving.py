"""The search for channels that one group can do without, by halving. Ding et al., ICML 2019 (AOFP), arXiv 1905.04748.

A half is a number of batches in each of which another random half of the candidates is hidden from the layers that
read them. Every hidden channel is credited with the damage; the better half of the candidates is cut when its worst
mean damage is under `theta`, becomes the next set of candidates when it is not, and is given up when it cannot be
halved any more.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from spaces.groups import ChannelGroup

RIDGE = 1.0  # in batches: how many it takes to believe that a channel's cost differs from the others'


@dataclass(frozen=True)
class Rules:
    """When a group is cut, and when it is left alone.

    Attributes:
        theta: mean damage, relative to the energy of the readers' outputs, that no cut channel may reach.
        batches: scored batches of a half.
        give_ups: searches in vain, one after the other, after which a group retires.
    """

    theta: float
    batches: int
    give_ups: int


class Decision(Enum):
    """What the end of a half leads to."""

    MOVE = "move"
    HALVE = "halve"
    GIVE_UP = "give up"


class Halving:
    """The search in one group; `state_dict` holds all of it.

    Where grouped convolutions split the channels into blocks, candidates, draws and cuts are equal in all of them.
    Widths after a cut are multiples of the group's divisor, so a half may cut fewer channels than it has found.

    Args:
        group: the channels.
        lowest: width under which the group is never cut.
        rules: thresholds.
        seed: of the draws, which are made on the CPU and so are the same on every device.
        device: where damage is summed.
    """

    width: int  # how many channels are alive
    hidden: int  # how many every batch hides: half of the candidates, rounded down in every block
    sums: Tensor  # of damage, per channel, in this half
    counts: Tensor  # how often each channel was credited
    credits: Tensor  # the damage of each batch of the half
    draws: Tensor  # the channels that each batch of the half hides; int64, shape (batches, hidden)

    def __init__(
        self, group: ChannelGroup, lowest: int, rules: Rules, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.group, self.lowest, self.rules = group, lowest, rules
        self.alive = torch.ones(group.width, dtype=torch.bool)
        self.candidates = self.alive.clone()
        # Until measured: damages that add up to the whole energy of what the readers compute.
        self.damage = torch.full((group.width,), 1 / group.width, dtype=torch.float64)
        self.failures = 0
        self.scored = 0
        self._device = torch.device(device)
        self._sum_dtype = torch.float32 if self._device.type == "mps" else torch.float64
        self._generator = torch.Generator().manual_seed(seed)
        self._start_half()

    @property
    def exhausted(self) -> bool:
        """Whether it has been searched in vain too often."""
        return self.failures >= self.rules.give_ups

    @property
    def retired(self) -> bool:
        """Whether this group takes no part any more."""
        return self.exhausted or self.width_after(self._half_of(self.width)) == self.width

    @property
    def complete(self) -> bool:
        """Whether the half has its batches, so that `decide` is due."""
        return self.scored >= self.rules.batches

    @property
    def drawn(self) -> Tensor:
        """The channels that the current batch hides; int64, shape (hidden,), on the device."""
        return self.draws[self.scored]

    def width_after(self, channels: int) -> int:
        """Return the legal width nearest to what is left when so many channels are cut, never fewer."""
        divisor = self.group.divisor
        return min(self.width, max(self.lowest, -(-(self.width - channels) // divisor) * divisor))

    def add(self, damage: Tensor) -> None:
        """Credit the hidden channels with a batch's damage, a scalar; one that is not finite is left out.

        Nothing is read back from the device.
        """
        finite, hidden = torch.isfinite(damage), self.drawn
        self.credits[self.scored] = damage
        credit = torch.where(finite, damage.to(self._sum_dtype), 0)
        self.sums.index_add_(0, hidden, credit.expand(len(hidden)))
        self.counts.index_add_(0, hidden, finite.long().expand(len(hidden)))
        self.scored += 1

    def decide(self) -> tuple[Decision, Tensor]:
        """End the half and return what to do, with the better half of the candidates.

        The candidates of a MOVE are still alive: `cut` takes as many of them as the budget asks for. Anything else
        is already done. The tensor has shape (blocks, channels), best first.
        """
        mean = self._means()
        self.learn()
        half = self.hidden
        order = (
            mean.view(self.group.conv_groups, -1).sort(dim=1, stable=True).indices[:, : half // self.group.conv_groups]
        )
        offsets = torch.arange(self.group.conv_groups).unsqueeze(1) * (self.group.width // self.group.conv_groups)
        best = order + offsets
        if float(mean[best].max()) < self.rules.theta:
            return Decision.MOVE, best
        if self.width_after(self._half_of(half)) < self.width:
            self._search_among(torch.zeros_like(self.alive).index_fill_(0, best.flatten(), True))
            return Decision.HALVE, best
        self.failures += 1
        self._search_among(self.alive.clone())
        return Decision.GIVE_UP, best

    def cut(self, best: Tensor, channels: int) -> None:
        """Cut so many of the channels that `decide` returned and search on among those left."""
        self.alive[best[:, : channels // self.group.conv_groups].flatten()] = False
        self.failures = 0
        self._search_among(self.alive.clone())

    def keep(self, kept: Tensor) -> None:
        """Cut all but the channels of these indices, which must be alive."""
        self.alive &= torch.zeros_like(self.alive).index_fill_(0, kept, True)
        self._search_among(self.alive.clone())

    def learn(self) -> None:
        """Estimate what every candidate costs alone from what is credited so far.

        If damages add up, a batch costs the sum of what its hidden channels cost. This is solved by ridge regression
        towards equal costs: a short half has fewer batches than channels, and the mean credited to a channel carries
        the chance of its company.
        """
        damages = self.credits[: self.scored].cpu().double()
        known = torch.isfinite(damages)
        if not known.any() or self.hidden == 0:
            return
        places = self.candidates.nonzero().flatten()
        hidden = torch.zeros(self.scored, self.group.width, dtype=torch.float64)
        hidden = hidden.scatter_(1, self.draws[: self.scored].cpu(), 1.0)[known][:, places]
        mean = damages[known].mean() / self.hidden
        unexplained = damages[known] - mean * self.hidden
        gram = hidden.T @ hidden + RIDGE * torch.eye(len(places), dtype=torch.float64)
        self.damage[places] = mean + torch.linalg.solve(gram, hidden.T @ unexplained)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the search has found and drawn, as tensors and numbers."""
        tensors = {name: getattr(self, name).clone() for name in ("alive", "candidates", "damage")}
        on_device = {name: getattr(self, name).cpu().clone() for name in ("sums", "counts", "draws", "credits")}
        numbers = {"failures": self.failures, "scored": self.scored}
        return tensors | on_device | numbers | {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        for name in ("alive", "candidates", "damage"):
            setattr(self, name, state[name].clone())
        self._count()
        self.sums, self.counts, self.draws = (state[name].to(self._device) for name in ("sums", "counts", "draws"))
        self.sums, self.counts = self.sums.to(self._sum_dtype).clone(), self.counts.clone()
        self.credits = state["credits"].to(self._device, self._sum_dtype).clone()
        self.failures, self.scored = state["failures"], state["scored"]
        self._generator.set_state(state["generator"])

    def _half_of(self, channels: int) -> int:
        return self.group.conv_groups * (channels // self.group.conv_groups // 2)

    def _means(self) -> Tensor:
        """Mean damage of every candidate; infinite for the others and for those never drawn."""
        counts = self.counts.cpu()
        mean = self.sums.cpu().double() / counts.clamp(min=1)
        return mean.masked_fill((counts == 0) | ~self.candidates, torch.inf)

    def _search_among(self, candidates: Tensor) -> None:
        self.candidates = candidates
        self._start_half()

    def _start_half(self) -> None:
        """Draw the channels that each batch hides, all at once, and forget the sums."""
        self._count()
        conv_groups, width = self.group.conv_groups, self.group.width
        places = self.candidates.nonzero().view(1, conv_groups, -1)
        keys = torch.rand(self.rules.batches, conv_groups, places.shape[2], generator=self._generator)
        first = keys.argsort(dim=2)[..., : self.hidden // conv_groups]
        chosen = places.expand(len(keys), -1, -1).gather(2, first).flatten(1)
        self.draws = chosen.to(self._device)
        self.sums = torch.zeros(width, dtype=self._sum_dtype, device=self._device)
        self.counts = torch.zeros(width, dtype=torch.int64, device=self._device)
        self.credits = torch.full((self.rules.batches,), torch.nan, dtype=self._sum_dtype, device=self._device)
        self.scored = 0

    def _count(self) -> None:
        """Note the numbers that every batch asks for, which would otherwise be read from tensors each time."""
        self.width = int(self.alive.sum())
        self.hidden = self._half_of(int(self.candidates.sum()))
