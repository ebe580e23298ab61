"""Quantisation-aware training: weights are rounded to a few bits in every forward pass.

Codes are symmetric and uniform per filter: a weight is code * scale, with codes from -levels to levels. The range of a
filter is a share of its largest weight, chosen once by squared error. Gradients pass the rounding unchanged
(the straight-through estimator of Bengio et al., arXiv 1308.3432).
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

from pruning.base import PruningError

CLIPS = tuple(share / 20 for share in range(20, 5, -1))  # shares of the largest weight tried as a filter's range
CACHED_ELEMENTS = 2**18  # 1 MiB of float32: weights on which all `CLIPS` are tried stay in a core's cache


def column(values: Tensor, weight: Tensor) -> Tensor:
    """Shape one value per filter so that it broadcasts over the weights."""
    return values.view(-1, *[1] * (weight.ndim - 1))


def levels_of(bits: Tensor, weight: Tensor) -> Tensor:
    """Return the largest code of each filter, in the dtype of the weights."""
    return 2 ** (bits.to(weight.dtype) - 1) - 1


def codes_of(weight: Tensor, scales: Tensor, levels: Tensor) -> Tensor:
    """Return the code of each weight: integers in the dtype of the weights."""
    limit = column(levels, weight)
    return (weight / column(scales, weight)).round().clamp(-limit, limit)


def scales_of(weight: Tensor, levels: Tensor, clip: Tensor) -> Tensor:
    """Return the scale of each filter, the weight of code 1; 1 for a filter of zeros."""
    scales = clip * weight.abs().flatten(1).amax(dim=1) / levels
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def best_clips(weight: Tensor, levels: Tensor) -> Tensor:
    """Return, per filter, the range among `CLIPS` with the least squared error, as a share of the largest weight.

    Args:
        weight: shape (filters, ...).
        levels: largest code of each filter, shape (filters,).
    """
    filters = max(1, CACHED_ELEMENTS // max(1, weight[0].numel()))
    parts = zip(weight.split(filters), levels.split(filters), strict=True)
    return torch.cat([_best_clips(part, part_levels) for part, part_levels in parts])


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
    """Round in the forward pass; pass the gradient on unchanged where a weight is within the range, else as zero."""

    @staticmethod
    @override
    def forward(ctx: Any, weight: Tensor, scales: Tensor, levels: Tensor) -> Tensor:
        steps = (weight / column(scales, weight)).round()
        limit = column(levels, weight)
        ctx.save_for_backward(steps.abs() <= limit)
        return steps.clamp(-limit, limit) * column(scales, weight)

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


class Rounding(nn.Module):
    """The rounding of a layer's weights, a parametrization of `weight`.

    The share of the largest weight at which a filter's range ends is chosen once; the range follows the largest weight
    as it changes in training.

    Args:
        bits: bits of each filter, shape (filters,), uint8.
        weight: weights for which the shares are chosen, shape (filters, ...).
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
        """Return the scale of each filter for the present weights; see `scales_of`."""
        return scales_of(weight.detach(), self.levels, self.clips)

    @override
    def forward(self, weight: Tensor) -> Tensor:
        return cast(Tensor, _StraightThrough.apply(weight, self.scales(weight), self.levels))


def register_rounding(net: nn.Module, bits: Mapping[str, Tensor]) -> None:
    """Register, in place, a `Rounding` of the weights of layers; training then updates the unrounded weights.

    Args:
        bits: layer name -> bits of each filter, shape (filters,).

    Raises:
        PruningError: weights that are not finite.
    """
    for name, filter_bits in bits.items():
        layer = cast(nn.Conv2d | nn.Linear, net.get_submodule(name))
        weight = layer.weight.detach()
        if not torch.isfinite(weight).all():
            raise PruningError(f"the weights of {name!r} are not finite and cannot be quantised; train the net again")
        parametrize.register_parametrization(layer, "weight", Rounding(filter_bits.to(weight.device), weight))
