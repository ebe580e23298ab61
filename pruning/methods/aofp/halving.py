"""The search of one group for channels to cut, by halving. Ding et al., ICML 2019 (AOFP), arXiv 1905.04748.

A half is a number of batches. Each of them hides another random half of the candidates from the layers that read them,
and credits every hidden channel with the relative output error that this causes. At the end of a half, the better half
of the candidates is cut if its largest mean error is under `theta`; otherwise it becomes the next set of candidates, or
is given up where it cannot be halved any more.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from spaces.groups import ChannelGroup

RIDGE = 1.0  # in batches: the weight of the assumption that all channels have equal errors


@dataclass(frozen=True)
class HalvingRules:
    """When a group is cut, and when its search ends.

    Attributes:
        theta: every channel of a cut must have a mean relative output error below it.
        batches: scored batches of a half.
        give_ups: number of consecutive searches without a cut after which a group retires.
    """

    theta: float
    batches: int
    give_ups: int


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

    Args:
        lowest: the smallest width that the group may get.
        seed: of the draws, which are made on the CPU and so are the same on every device.
        device: where errors are summed.

    Attributes:
        width: number of channels that are alive.
        hidden: number of channels that every batch hides: half of the candidates, rounded down in every conv group.
        draws: channels that each batch of the half hides; int64, shape (batches, hidden).
        sums: of the errors credited to each channel in this half, shape (group.width,).
        counts: how often each channel was credited in this half, shape (group.width,).
        batch_errors: error of each batch of this half, shape (batches,); NaN for batches that are still to come.
        channel_errors: estimated error of hiding each channel alone, float64, shape (group.width,).
    """

    width: int
    hidden: int
    draws: Tensor
    sums: Tensor
    counts: Tensor
    batch_errors: Tensor

    def __init__(
        self, group: ChannelGroup, lowest: int, rules: HalvingRules, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.group, self.lowest, self.rules = group, lowest, rules
        self.alive = torch.ones(group.width, dtype=torch.bool)
        self.candidates = self.alive.clone()
        # Before any measurement: equal errors that add up to the whole energy of the consumers' outputs.
        self.channel_errors = torch.full((group.width,), 1 / group.width, dtype=torch.float64)
        self.failures = 0
        self.scored = 0
        self._device = torch.device(device)
        self._sum_dtype = torch.float32 if self._device.type == "mps" else torch.float64
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
    def drawn(self) -> Tensor:
        """The channels that the current batch hides; int64, shape (hidden,), on the device."""
        return self.draws[self.scored]

    def width_after(self, channels: int) -> int:
        """Return the smallest legal width that holds the channels left after a cut of `channels`."""
        divisor = self.group.divisor
        return min(self.width, max(self.lowest, -(-(self.width - channels) // divisor) * divisor))

    def credit(self, error: Tensor) -> None:
        """Credit the hidden channels with the relative output error of a batch, unless it is not finite.

        The host does not wait for the device.

        Args:
            error: a scalar.
        """
        finite, hidden = torch.isfinite(error), self.drawn
        self.batch_errors[self.scored] = error
        credit = torch.where(finite, error.to(self._sum_dtype), 0)
        self.sums.index_add_(0, hidden, credit.expand(len(hidden)))
        self.counts.index_add_(0, hidden, finite.long().expand(len(hidden)))
        self.scored += 1

    def decide(self) -> tuple[Decision, Tensor]:
        """End the half; return the decision and the better half of the candidates.

        After a MOVE the candidates are still alive, and `cut` cuts as many of them as the goal asks for. The other
        decisions are already carried out.

        Returns:
            The decision, and channels of shape (conv groups, channels), in rising order of mean error.
        """
        mean = self._means()
        self.estimate_errors()
        half = self.hidden
        conv_groups = self.group.conv_groups
        order = mean.view(conv_groups, -1).sort(dim=1, stable=True).indices[:, : half // conv_groups]
        offsets = torch.arange(conv_groups).unsqueeze(1) * (self.group.width // conv_groups)
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
        """Cut the first `channels` of the channels that `decide` returned, and search among all that are left."""
        self.alive[best[:, : channels // self.group.conv_groups].flatten()] = False
        self.failures = 0
        self._search_among(self.alive.clone())

    def keep(self, kept: Tensor) -> None:
        """Cut all channels but `kept`, which must be alive."""
        self.alive &= torch.zeros_like(self.alive).index_fill_(0, kept, True)
        self._search_among(self.alive.clone())

    def estimate_errors(self) -> None:
        """Estimate the error of hiding each candidate alone, from the batches of this half so far.

        If errors add up, the error of a batch is the sum of the errors of its hidden channels. Ridge regression
        towards equal errors solves this: a short half has fewer batches than channels, and a channel's mean credit
        also depends on the channels that happened to be hidden with it.
        """
        errors = self.batch_errors[: self.scored].cpu().double()
        known = torch.isfinite(errors)
        if not known.any() or self.hidden == 0:
            return
        places = self.candidates.nonzero().flatten()
        hidden = torch.zeros(self.scored, self.group.width, dtype=torch.float64)
        hidden = hidden.scatter_(1, self.draws[: self.scored].cpu(), 1.0)[known][:, places]
        mean = errors[known].mean() / self.hidden
        unexplained = errors[known] - mean * self.hidden
        gram = hidden.T @ hidden + RIDGE * torch.eye(len(places), dtype=torch.float64)
        self.channel_errors[places] = mean + torch.linalg.solve(gram, hidden.T @ unexplained)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the search has measured and drawn, as tensors and numbers."""
        tensors = {name: getattr(self, name).clone() for name in ("alive", "candidates", "channel_errors")}
        on_device = {name: getattr(self, name).cpu().clone() for name in ("sums", "counts", "draws", "batch_errors")}
        numbers = {"failures": self.failures, "scored": self.scored}
        return tensors | on_device | numbers | {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        for name in ("alive", "candidates", "channel_errors"):
            setattr(self, name, state[name].clone())
        self._count()
        self.sums, self.counts, self.draws = (state[name].to(self._device) for name in ("sums", "counts", "draws"))
        self.sums, self.counts = self.sums.to(self._sum_dtype).clone(), self.counts.clone()
        self.batch_errors = state["batch_errors"].to(self._device, self._sum_dtype).clone()
        self.failures, self.scored = state["failures"], state["scored"]
        self._generator.set_state(state["generator"])

    def _half_of(self, channels: int) -> int:
        return self.group.conv_groups * (channels // self.group.conv_groups // 2)

    def _means(self) -> Tensor:
        """Return the mean error credited to every candidate; infinite for channels never drawn and for all others."""
        counts = self.counts.cpu()
        mean = self.sums.cpu().double() / counts.clamp(min=1)
        return mean.masked_fill((counts == 0) | ~self.candidates, torch.inf)

    def _search_among(self, candidates: Tensor) -> None:
        self.candidates = candidates
        self._start_half()

    def _start_half(self) -> None:
        """Draw the channels that each batch of a half hides, all at once, and reset the sums."""
        self._count()
        conv_groups, width = self.group.conv_groups, self.group.width
        places = self.candidates.nonzero().view(1, conv_groups, -1)
        keys = torch.rand(self.rules.batches, conv_groups, places.shape[2], generator=self._generator)
        first = keys.argsort(dim=2)[..., : self.hidden // conv_groups]
        chosen = places.expand(len(keys), -1, -1).gather(2, first).flatten(1)
        self.draws = chosen.to(self._device)
        self.sums = torch.zeros(width, dtype=self._sum_dtype, device=self._device)
        self.counts = torch.zeros(width, dtype=torch.int64, device=self._device)
        self.batch_errors = torch.full((self.rules.batches,), torch.nan, dtype=self._sum_dtype, device=self._device)
        self.scored = 0

    def _count(self) -> None:
        """Store the counts that every batch asks for, so that they are not read from tensors each time."""
        self.width = int(self.alive.sum())
        self.hidden = self._half_of(int(self.candidates.sum()))
