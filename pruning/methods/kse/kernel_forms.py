"""Plain modules that compute what a convolution with shared kernels computes in evaluation.

A convolution whose kernels repeat is one form. Where channels keep few kernels, a depthwise convolution with a
multiplier followed by a pointwise one with a 0/1 weight takes fewer multiplications than that, its additions counted
as such. Which form is the fastest depends on the layer and on the device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SharedChannels:
    """Input channels that keep equally many kernels.

    Attributes:
        channels: their numbers, shape (n,).
        kernels: shape (n, kernels kept, kh, kw).
        index: which of its kernels each output uses, shape (n, outputs).
    """

    channels: Tensor
    kernels: Tensor
    index: Tensor

    def weight(self) -> Tensor:
        """Return the weight of a convolution over these channels alone, shape (outputs, n, kh, kw)."""
        rows = torch.arange(len(self.channels), device=self.index.device).unsqueeze(1)
        return self.kernels[rows, self.index].transpose(0, 1)


class ReadChannels(nn.Module):
    """Apply a layer to some of the channels in a given order; a channel may be read several times."""

    channels: Tensor

    def __init__(self, channels: Tensor, layer: nn.Module) -> None:
        super().__init__()
        self.register_buffer("channels", channels)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the layer's output."""
        return self.layer(x.index_select(1, self.channels))  # type: ignore[no-any-return]


class Total(nn.Module):
    """Add up the outputs of layers that read the same input."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of what all parts make of the input."""
        first, *others = [part(x) for part in self.parts]
        for other in others:
            first = first + other
        return first  # type: ignore[no-any-return]


def plain_conv(weight: Tensor, bias: nn.Parameter | None, groups: int, geometry: Mapping[str, Any]) -> nn.Conv2d:
    """Return a convolution with this weight.

    Args:
        geometry: stride, padding and dilation.
    """
    outputs, inputs = len(weight), weight.shape[1] * groups
    size = (weight.shape[2], weight.shape[3])
    conv = nn.Conv2d(inputs, outputs, size, groups=groups, bias=bias is not None, device="meta", **geometry)
    conv.weight, conv.bias = nn.Parameter(weight.detach().contiguous(), requires_grad=False), bias
    return conv


def is_cheaper_separable(kept: int, outputs: int, area: int) -> bool:
    """Return whether a depthwise and a pointwise convolution multiply less than one convolution over the channel."""
    return (area + outputs) * kept < area * outputs


def separable(parts: Sequence[SharedChannels], bias: nn.Parameter | None, geometry: Mapping[str, Any]) -> nn.Module:
    """Return depthwise convolutions and a pointwise one that adds up their maps, for channels where that is cheaper.

    The other channels are convolved as usual.

    Args:
        parts: all channels that are read; for some of them `is_cheaper_separable` must hold.
    """
    outputs, area = parts[0].index.shape[1], parts[0].kernels[0, 0].numel()
    cheaper = [part for part in parts if is_cheaper_separable(part.kernels.shape[1], outputs, area)]
    others = [part for part in parts if not is_cheaper_separable(part.kernels.shape[1], outputs, area)]
    kernels = torch.cat([part.kernels.flatten(0, 1).unsqueeze(1) for part in cheaper])
    repeated = torch.cat([part.channels.repeat_interleave(part.kernels.shape[1]) for part in cheaper])
    adding = torch.cat([_one_hot(part).flatten(0, 1) for part in cheaper]).t()[:, :, None, None]
    depthwise = plain_conv(kernels, None, len(kernels), geometry)
    pointwise = plain_conv(adding, bias, 1, {})
    shared = ReadChannels(repeated, nn.Sequential(depthwise, pointwise))
    if not others:
        return shared
    weight = torch.cat([part.weight() for part in others], 1)
    channels = torch.cat([part.channels for part in others])
    return Total(shared, ReadChannels(channels, plain_conv(weight, None, 1, geometry)))


def _one_hot(part: SharedChannels) -> Tensor:
    """Return 1 where an output uses a kernel and 0 elsewhere, shape (n, kernels kept, outputs)."""
    count, kept, outputs = len(part.channels), part.kernels.shape[1], part.index.shape[1]
    uses = part.kernels.new_zeros(count, kept, outputs)
    return uses.scatter_(1, part.index.unsqueeze(1), 1.0)
