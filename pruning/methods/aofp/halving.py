"""The search of one group for channels to cut, by halving. Ding et al., ICML 2019 (AOFP), arXiv 1905.04748.

A half is a number of batches. Each of them hides another random half of the candidates from the layers that read them,
and credits every hidden channel with the relative output error that this causes. At the end of a half, the better half
of the candidates is cut if its largest mean error is under `theta`; otherwise it becomes the next set of candidates, or
is given up where it cannot be halved any more.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruning.methods.aofp.evidence import Evidence
from pruning.rewriting.float64 import has_float64
from spaces.groups import ChannelGroup

FEW = 1 / 8  # share of the alive channels that an additional set hides
RANKED_AFTER = frozenset((2, *(4**n for n in range(1, 12))))  # batches of a half after which channels are ranked anew
DEPTHS = (0.25, 0.5, 0.75, 0.875)  # shares of the alive channels, the least damaging first, that are hidden together


@dataclass(frozen=True)
class HalvingRules:
    """When a group is cut, and when its search ends.

    Attributes:
        theta: every channel of a cut must have a mean relative output error below it.
        batches: scored batches of a half.
        give_ups: number of consecutive searches without a cut after which a group retires.
        few_sets: additional random sets, of an eighth of the alive channels, that every batch hides.
    """

    theta: float
    batches: int
    give_ups: int
    few_sets: int


class Decision(Enum):
    """The outcome of a half: cut its better half, search on among it, or start again with all alive channels."""

    MOVE = "move"
    HALVE = "halve"
    GIVE_UP = "give up"


class Halving:
    """The search in one channel group; `state_dict` holds all its state.

    Where a grouped convolution splits the channels into conv groups, candidates, draws and cuts are equally many in
    all conv groups. Widths after a cut are multiples of the group's divisor, so a half may cut fewer channels than it
    has found.

    Besides the half of the candidates that decides, every batch hides further sets, which only tell how much damage
    each channel does: `few_sets` random ones of an eighth of the alive channels and, once there is evidence, the least
    damaging channels at all `DEPTHS`.

    Args:
        lowest: the smallest width that the group may get.
        seed: of the draws, which are made on the CPU and so are the same on every device.
        device: where errors are summed.

    Attributes:
        width: number of channels that are alive.
        hidden: number of channels that every batch hides: half of the candidates, rounded down in every conv group.
        draws: channels that each batch of the half hides; int64, shape (batches, hidden).
        few: the additional sets of each batch; int64, shape (batches, few_sets, channels).
        sums: of the errors credited to each channel in this half, shape (group.width,).
        counts: how often each channel was credited in this half, shape (group.width,).
        errors: of the sets of each batch of this half, shape (batches, 1 + few_sets + depths): the half, the additional
            sets and the least damaging channels at every depth. NaN where nothing was hidden yet.
        evidence: pooled over all halves.
        depths: sums of the errors of hiding the least damaging channels, and their numbers, shape (depths, 2); those of
            earlier halves count half as much each.
    """

    width: int
    hidden: int
    draws: Tensor
    few: Tensor
    sums: Tensor
    counts: Tensor
    errors: Tensor

    def __init__(
        self, group: ChannelGroup, lowest: int, rules: HalvingRules, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.group, self.lowest, self.rules = group, lowest, rules
        self.alive = torch.ones(group.width, dtype=torch.bool)
        self.candidates = self.alive.clone()
        self.evidence = Evidence(group.width)
        self.depths = torch.zeros(len(DEPTHS), 2, dtype=torch.float64)
        self.failures = 0
        self.scored = 0
        self._ranked: Tensor | None = None  # alive channels by rising share, shape (conv groups, channels)
        self._pooled = 0  # batches of this half that are in the evidence
        self._device = torch.device(device)
        self._sum_dtype = torch.float64 if has_float64(self._device) else torch.float32
        self._generator = torch.Generator().manual_seed(seed)
        self._start_half()

    @property
    def exhausted(self) -> bool:
        """Whether too many consecutive searches ended without a cut."""
        return self.failures >= self.rules.give_ups

    @property
    def retired(self) -> bool:
        """Whether this group is not searched any more."""
        return self.exhausted or self.width_after(self._half_of(self.width)) == self.width

    @property
    def complete(self) -> bool:
        """Whether the half has all its batches, so that `decide` is due."""
        return self.scored >= self.rules.batches

    @property
    def sets(self) -> list[Tensor]:
        """The sets of channels that the current batch hides, one after the other; int64, on the device.

        The first one is half of the candidates.
        """
        least = [] if self._ranked is None else [self._least(depth) for depth in DEPTHS]
        return [self.draws[self.scored], *self.few[self.scored], *least]

    def width_after(self, channels: int) -> int:
        """Return the smallest legal width that holds the channels left after a cut of `channels`."""
        divisor = self.group.divisor
        return min(self.width, max(self.lowest, -(-(self.width - channels) // divisor) * divisor))

    def credit(self, errors: Tensor) -> None:
        """Record the relative output errors of a batch.

        The first error, if it is finite, is credited to the hidden half of the candidates. The host waits for the
        device only after few batches of a half, to rank the channels by the evidence so far.

        Args:
            errors: of `sets`, shape (sets,).
        """
        drawn = self.draws[self.scored]
        self.errors[self.scored, : len(errors)] = errors.to(self._sum_dtype)
        finite = torch.isfinite(errors[0])
        credit = torch.where(finite, errors[0].to(self._sum_dtype), 0)
        self.sums.index_add_(0, drawn, credit.expand(len(drawn)))
        self.counts.index_add_(0, drawn, finite.long().expand(len(drawn)))
        self.scored += 1
        if self.scored in RANKED_AFTER:
            self._rank()

    def decide(self) -> tuple[Decision, Tensor]:
        """End the half; return the decision and the better half of the candidates.

        After a MOVE the candidates are still alive, and `cut` cuts as many of them as the goal asks for. The other
        decisions are already carried out.

        Returns:
            The decision, and channels of shape (conv groups, channels), in rising order of mean error.
        """
        mean = self._means()
        half = self.hidden
        best = self._lowest_of(mean, half // self.group.conv_groups)
        if float(mean[best].max()) < self.rules.theta:
            return Decision.MOVE, best
        if self.width_after(self._half_of(half)) < self.width:
            self._search_among(torch.zeros_like(self.alive).index_fill_(0, best.flatten(), True))
            return Decision.HALVE, best
        self.failures += 1
        self._search_among(self.alive.clone())
        return Decision.GIVE_UP, best

    def cut(self, best: Tensor, channels: int) -> None:
        """Cut the first `channels` of the channels that `decide` returned, and search among all that are left."""
        self._pool()
        self.alive[best[:, : channels // self.group.conv_groups].flatten()] = False
        self.failures = 0
        self.evidence.restart(self.alive)
        self.depths.zero_()
        self._search_among(self.alive.clone())

    def keep(self, kept: Tensor) -> None:
        """Cut all channels but `kept`, which must be alive."""
        self._pool()
        self.alive &= torch.zeros_like(self.alive).index_fill_(0, kept, True)
        self.evidence.restart(self.alive)
        self.depths.zero_()
        self._search_among(self.alive.clone())

    def shares(self) -> Tensor:
        """Return the damage of every channel relative to the mean of the alive ones, from all batches so far.

        Shape (group.width,), float64.
        """
        self._pool()
        return self.evidence.shares(self.alive)

    def damages(self) -> NDArray[np.float64]:
        """Return the relative output error of hiding the k least damaging channels, for k = 0 .. width: rising from 0.

        It is measured at `DEPTHS` and straight in between. A depth that was not reached is estimated as if damage added
        up. Without any channel, the error is 1.
        """
        rising = np.sort(self.shares()[self.alive].clamp(min=0).numpy())
        counts, errors = [0], [0.0]
        for depth, (total, sets) in zip(DEPTHS, self.depths.tolist(), strict=True):
            count = self._count_at(depth) * self.group.conv_groups
            if count > counts[-1]:
                added_up = self.evidence.damage(count / self.width) * float(rising[:count].mean())
                counts.append(count)
                errors.append(max(errors[-1], total / sets if sets else added_up))
        if counts[-1] < self.width:
            counts.append(self.width)
            errors.append(max(errors[-1], 1.0))
        return np.interp(np.arange(self.width + 1), counts, errors)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the search has measured and drawn, as tensors and numbers."""
        tensors = {name: getattr(self, name).clone() for name in ("alive", "candidates", "depths")}
        if self._ranked is not None:
            tensors["ranked"] = self._ranked.cpu().clone()
        on_device = {name: getattr(self, name).cpu().clone() for name in ("sums", "counts", "draws", "few", "errors")}
        numbers = {"failures": self.failures, "scored": self.scored, "pooled": self._pooled}
        state = tensors | on_device | numbers | {"evidence": self.evidence.state_dict()}
        return state | {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        for name in ("alive", "candidates", "depths"):
            setattr(self, name, state[name].clone())
        self._count()
        for name in ("draws", "few", "counts"):
            setattr(self, name, state[name].to(self._device).clone())
        for name in ("sums", "errors"):
            setattr(self, name, state[name].to(self._device, self._sum_dtype).clone())
        self._ranked = state["ranked"].to(self._device).clone() if "ranked" in state else None
        self.failures, self.scored = state["failures"], state["scored"]
        self._pooled = state["pooled"]
        self.evidence.load_state_dict(state["evidence"])
        self._generator.set_state(state["generator"])

    def _half_of(self, channels: int) -> int:
        return self.group.conv_groups * (channels // self.group.conv_groups // 2)

    def _means(self) -> Tensor:
        """Return the mean error credited to every candidate; infinite for channels never drawn and for all others."""
        counts = self.counts.cpu()
        mean = self.sums.cpu().double() / counts.clamp(min=1)
        return mean.masked_fill((counts == 0) | ~self.candidates, torch.inf)

    def _lowest_of(self, values: Tensor, count: int) -> Tensor:
        """Return the `count` channels of the lowest values in every conv group, rising: shape (conv groups, count)."""
        conv_groups = self.group.conv_groups
        order = values.view(conv_groups, -1).sort(dim=1, stable=True).indices[:, :count]
        return order + torch.arange(conv_groups).unsqueeze(1) * (self.group.width // conv_groups)

    def _count_at(self, depth: float) -> int:
        """Return how many channels of a conv group are hidden at a depth."""
        return max(1, int(depth * self.width / self.group.conv_groups))

    def _least(self, depth: float) -> Tensor:
        assert self._ranked is not None
        return self._ranked[:, : self._count_at(depth)].flatten()

    def _pool(self) -> None:
        """Move what the batches so far have measured to the evidence."""
        new = slice(self._pooled, self.scored)
        errors = self.errors[new].cpu().double()
        if not len(errors):
            return
        everywhere = torch.equal(self.candidates, self.alive)
        self.evidence.add(self.draws[new].cpu(), errors[:, 0], self.width, everywhere)
        few = self.few[new].cpu().flatten(0, 1)
        self.evidence.add(few, errors[:, 1 : 1 + self.rules.few_sets].flatten(), self.width, random=True)
        at_depths = errors[:, 1 + self.rules.few_sets :]
        known = at_depths.isfinite()
        self.depths += torch.stack([at_depths.where(known, 0.0).sum(0), known.sum(0).double()], dim=1)
        self._pooled = self.scored

    def _search_among(self, candidates: Tensor) -> None:
        self._pool()
        self.candidates = candidates
        self._start_half()

    def _start_half(self) -> None:
        """Draw the channels that each batch of a half hides, all at once, and reset the sums."""
        self._count()
        batches, width, few_sets = self.rules.batches, self.group.width, self.rules.few_sets
        self.draws = self._drawn(self.candidates, batches, self.hidden)
        few = max(1, int(FEW * self.width / self.group.conv_groups)) * self.group.conv_groups
        self.few = self._drawn(self.alive, batches * few_sets, few).view(batches, few_sets, few)
        self.sums = torch.zeros(width, dtype=self._sum_dtype, device=self._device)
        self.counts = torch.zeros(width, dtype=torch.int64, device=self._device)
        sets = 1 + few_sets + len(DEPTHS)
        self.errors = torch.full((batches, sets), torch.nan, dtype=self._sum_dtype, device=self._device)
        self.scored = self._pooled = 0
        if self._ranked is not None:  # among fewer channels, where the last half ended in a cut
            self._rank()
        self.depths *= 0.5

    def _rank(self) -> None:
        """Order the alive channels by the evidence so far: what the sets of the least damaging ones are taken from."""
        shares = self.shares().masked_fill(~self.alive, torch.inf)
        self._ranked = self._lowest_of(shares, self.width // self.group.conv_groups).to(self._device)

    def _drawn(self, among: Tensor, sets: int, size: int) -> Tensor:
        """Draw sets of `size` channels, equally many of every conv group, on the device: shape (sets, size)."""
        conv_groups = self.group.conv_groups
        places = among.nonzero().view(1, conv_groups, -1)
        keys = torch.rand(sets, conv_groups, places.shape[2], generator=self._generator)
        first = keys.argsort(dim=2)[..., : size // conv_groups]
        return places.expand(sets, -1, -1).gather(2, first).flatten(1).to(self._device)

    def _count(self) -> None:
        """Store the counts that every batch asks for, so that they are not read from tensors each time."""
        self.width = int(self.alive.sum())
        self.hidden = self._half_of(int(self.candidates.sum()))
