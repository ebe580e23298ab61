"""Outputs of a layer without some of its inputs."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.calibration.layer_calls import LayerCall


def along(mask: Tensor, channels_last: bool, value: Tensor) -> Tensor:
    """Reshape a mask to broadcast over the channel axis of a layer's input or output, in the dtype of `value`."""
    return mask.to(value.dtype).view(-1, *[1] * (0 if channels_last else value.ndim - 2))


def ablate(call: LayerCall, hidden: Tensor) -> Tensor:
    """Return the output of a call of a layer if the channels `hidden` of its input were 0.

    The layer is linear in its inputs, so this is its output less the contribution of the hidden channels, which costs
    their share of a forward pass. Where half of the channels or more are hidden, a pass over the others is cheaper.
    Hidden channels are spread unevenly over the groups of a grouped convolution, so its pass is repeated with masked
    filters.

    Args:
        call: of a convolution or linear layer, which can be repeated.
        hidden: indices of input channels; there may be none.
    """
    filters, output = call.filters, call.output
    if not len(hidden):
        return output.clone()
    if call.channels_last:
        part = call.repeat(call.value.index_select(-1, hidden), filters.index_select(1, hidden), None)
        return torch.sub(output, part, out=part)
    if call.groups == 1:
        channels = filters.shape[1]
        most = channels <= 2 * len(hidden) < 2 * channels
        used = _others(hidden, channels) if most else hidden
        read = call.value.index_select(1, used)
        part = call.repeat(read, filters.index_select(1, used), call.bias if most else None)
        return part if most else torch.sub(output, part, out=part)
    keep = torch.ones(call.value.shape[1], dtype=filters.dtype, device=filters.device).index_fill_(0, hidden, 0)
    per_group = keep.view(call.groups, 1, -1).expand(-1, len(filters) // call.groups, -1).reshape(len(filters), -1)
    masked = filters * per_group.view(*per_group.shape, *[1] * (filters.ndim - 2))
    return call.repeat(call.value, masked, call.bias)


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
