"""Outputs of a layer without some of its inputs."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


def along(mask: Tensor, layer: nn.Module, value: Tensor) -> Tensor:
    """Reshape a mask to broadcast over the channel axis of a layer's input or output, in the dtype of `value`."""
    spatial = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)  # type: ignore[arg-type]
    return mask.to(value.dtype).view(-1, *[1] * spatial)


def ablate(layer: nn.Module, read: Tensor, output: Tensor, hidden: Tensor) -> Tensor:
    """Return the output of a layer for the input `read` with the channels `hidden` set to 0.

    The layer is linear in its inputs, so this is `output` less the contribution of the hidden channels, which costs
    their share of a forward pass. Where half of the channels or more are hidden, a pass over the others is cheaper.
    Hidden channels are spread unevenly over the groups of a grouped convolution, so its pass is repeated with masked
    weights.

    Args:
        layer: a convolution or linear layer.
        read: its input.
        output: its output for `read`.
        hidden: indices of input channels; there may be none.
    """
    if not len(hidden):
        return output.clone()
    if isinstance(layer, nn.Linear):
        part = functional.linear(read.index_select(-1, hidden), layer.weight.index_select(1, hidden))
        return torch.sub(output, part, out=part)
    assert isinstance(layer, _ConvNd)
    weight, groups = layer.weight, layer.groups
    if groups == 1:
        most = layer.in_channels <= 2 * len(hidden) < 2 * layer.in_channels
        used = _others(hidden, layer.in_channels) if most else hidden
        read = read.index_select(-1 - len(layer.kernel_size), used)
        part = layer._conv_forward(read, weight.index_select(1, used), layer.bias if most else None)  # type: ignore[operator]
        return part if most else torch.sub(output, part, out=part)  # type: ignore[no-any-return]
    keep = torch.ones(layer.in_channels, dtype=weight.dtype, device=weight.device).index_fill_(0, hidden, 0)
    per_group = keep.view(groups, 1, -1).expand(-1, len(weight) // groups, -1).reshape(len(weight), -1)
    masked = weight * per_group.view(*per_group.shape, *[1] * (weight.ndim - 2))
    return layer._conv_forward(read, masked, layer.bias)  # type: ignore[operator, no-any-return]


def _others(indices: Tensor, count: int) -> Tensor:
    """Return range(count) without `indices`, ascending; the host does not wait for the device."""
    hidden = torch.zeros(count, dtype=torch.uint8, device=indices.device).index_fill_(0, indices, 1)
    return hidden.sort(stable=True).indices[: count - len(indices)]


def normalised(norm: nn.Module, value: Tensor) -> Tensor:
    """Apply a BatchNorm without updating its statistics; in training mode with the batch statistics of `value`."""
    assert isinstance(norm, _BatchNorm)
    batch = norm.training or norm.running_mean is None
    mean, variance = (None, None) if batch else (norm.running_mean, norm.running_var)
    return functional.batch_norm(value, mean, variance, norm.weight, norm.bias, batch, 0.0, norm.eps)
