"""Training through the rounding of weights to a few bits.

Symmetric uniform codes per filter: a weight is code * scale, with codes from -levels to levels. The range of a filter
is a share of its largest weight, chosen once by squared error; rounding is trained through as if it were not there
(the straight-through estimator of Bengio et al., arXiv 1308.3432).
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pruning.base import PruningError

CLIPS = tuple(share / 20 for share in range(20, 5, -1))  # of the largest weight, tried as a filter's range
CACHED_ELEMENTS = 2**18  # 1 MiB of float32: what is tried again and again should stay in a core's cache


def column(values: Tensor, weight: Tensor) -> Tensor:
    """Give one value per filter the dimensions of the weights."""
    return values.view(-1, *[1] * (weight.ndim - 1))


def levels_of(bits: Tensor, weight: Tensor) -> Tensor:
    """Return the largest code of each filter, in the number format of the weights."""
    return 2 ** (bits.to(weight.dtype) - 1) - 1


def codes_of(weight: Tensor, scales: Tensor, levels: Tensor) -> Tensor:
    """Return the code of each weight: whole numbers in floating point."""
    limit = column(levels, weight)
    return (weight / column(scales, weight)).round().clamp(-limit, limit)


def scales_of(weight: Tensor, levels: Tensor, clip: Tensor) -> Tensor:
    """Return the weight that code 1 stands for, per filter; 1 for a filter of zeros."""
    scales = clip * weight.abs().flatten(1).amax(dim=1) / levels
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def best_clips(weight: Tensor, levels: Tensor) -> Tensor:
    """Return, per filter, the share of its largest weight at which codes end, of `CLIPS` that of least squared error.

    Args:
        weight: shape (filters, ...).
        levels: the largest code of each filter.
    """
    filters = max(1, CACHED_ELEMENTS // max(1, weight[0].numel()))
    parts = zip(weight.split(filters), levels.split(filters), strict=True)
    return torch.cat([_best_clips(some, their_levels) for some, their_levels in parts])


def _best_clips(weight: Tensor, levels: Tensor) -> Tensor:
    best, chosen = torch.full_like(levels, torch.inf), torch.ones_like(levels)
    for clip in CLIPS:
        scales = scales_of(weight, levels, torch.full_like(levels, clip))
        restored = codes_of(weight, scales, levels) * column(scales, weight)
        error = (restored - weight).square().flatten(1).sum(dim=1)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, clip, chosen)
    return chosen


class _StraightThrough(torch.autograd.Function):
    """Round in the forward pass; pass the gradient on unchanged where a weight is within the range, else stop it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scales: Tensor, levels: Tensor) -> Tensor:
        steps = (weight / column(scales, weight)).round()
        limit = column(levels, weight)
        ctx.save_for_backward(steps.abs() <= limit)
        return steps.clamp(-limit, limit) * column(scales, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


class Rounding(nn.Module):
    """The rounding of a layer's weights, as a parametrization of `weight`; ranges follow the largest weights.

    Args:
        bits: of each filter, shape (filters,), uint8.
        weight: from which the filters' shares of the range are chosen; shape (filters, ...).
    """

    def __init__(self, bits: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.bits: Tensor
        self.levels: Tensor
        self.clips: Tensor
        self.register_buffer("bits", bits)
        self.register_buffer("levels", levels_of(bits, weight))
        self.register_buffer("clips", best_clips(weight, self.levels))

    def scales(self, weight: Tensor) -> Tensor:
        """Return the weight that code 1 of each filter stands for."""
        return scales_of(weight.detach(), self.levels, self.clips)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weights."""
        return cast(Tensor, _StraightThrough.apply(weight, self.scales(weight), self.levels))


def train_rounded(net: nn.Module, bits: Mapping[str, Tensor]) -> None:
    """Have, in place, layers compute with rounded weights while training moves what is rounded.

    Args:
        bits: layer name -> bits of each filter, shape (filters,).

    Raises:
        PruningError: weights that are not finite.
    """
    for name, each in bits.items():
        layer = cast(nn.Conv2d | nn.Linear, net.get_submodule(name))
        weight = layer.weight.detach()
        if not torch.isfinite(weight).all():
            raise PruningError(f"the weights of {name!r} are not finite and cannot be quantised; train the net again")
        parametrize.register_parametrization(layer, "weight", Rounding(each.to(weight.device), weight))
