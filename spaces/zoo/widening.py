"""A wider network: every layer of a plain network gets a multiple of its channels.

The rule knows layers and no architecture: all widths but those of the image and of the output are multiplied. What it
makes is tried on an image, so a network in which rounded widths do not fit each other is refused.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from spaces.errors import ModelError

Shape = tuple[int, int, int]  # channels, height, width of one image


def scaled(width: int, factor: float) -> int:
    """Return a width times a factor, rounded, at least 1."""
    return max(1, round(width * factor))


def widen(net: nn.Module, factor: float, num_classes: int, input_shape: Shape, name: str) -> nn.Module:
    """Widen a network in place and return it, with fresh weights: He-initialised convolutions, else torch's defaults.

    Args:
        net: reads images of `input_shape` and gives `num_classes` outputs; its first convolution reads the image, and
            its last convolution or linear layer gives the output.
        factor: of every width, greater than 0; widths are rounded.
        name: of the network, for messages.

    Raises:
        ModelError: a layer of another kind has weights, or the rounded widths do not fit each other.
    """
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    reads = next((layer for layer in layers if isinstance(layer, nn.Conv2d)), None)
    for path, module in net.named_modules():
        kind = next((kind for kind in _WIDENED if isinstance(module, kind)), None)
        if kind is not None:
            _WIDENED[kind](module, factor, module is reads, module is layers[-1])
        elif module._parameters or module._buffers:
            own = next(iter([*module._parameters, *module._buffers]))
            raise ModelError(
                f"{name} cannot be widened: {path or 'it'} holds {own!r}, a tensor of a kind whose width is not known "
                "(--widen takes networks of convolutions, linear layers and norms)"
            )
    net.eval()
    try:
        with torch.no_grad():
            outputs = net(torch.zeros(1, *input_shape))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{name} cannot be widened by {factor:g}: its layers do not fit each other then ({reason}); take a factor "
            "that keeps all widths whole, such as 1.5 or 2"
        ) from error
    if outputs.shape[1] != num_classes:
        raise ModelError(f"{name} cannot be widened: its last layer does not give its {num_classes} outputs")
    return net.train()


def _widen_conv(conv: nn.Conv2d, factor: float, reads: bool, gives: bool) -> None:
    if conv.groups == conv.in_channels and not reads:  # depthwise
        multiplier = conv.out_channels // conv.in_channels
        conv.in_channels = conv.groups = scaled(conv.in_channels, factor)
        conv.out_channels = conv.in_channels * multiplier
    else:
        conv.in_channels = conv.in_channels if reads else conv.groups * scaled(conv.in_channels // conv.groups, factor)
        if not gives:
            conv.out_channels = conv.groups * scaled(conv.out_channels // conv.groups, factor)
    size = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
    conv.weight = nn.Parameter(conv.weight.new_empty(size))
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (conv.out_channels * math.prod(conv.kernel_size))))
    if conv.bias is not None:
        conv.bias = nn.Parameter(torch.zeros(conv.out_channels))


def _widen_linear(linear: nn.Linear, factor: float, _reads: bool, gives: bool) -> None:
    linear.in_features = scaled(linear.in_features, factor)
    linear.out_features = linear.out_features if gives else scaled(linear.out_features, factor)
    linear.weight = nn.Parameter(linear.weight.new_empty(linear.out_features, linear.in_features))
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.new_empty(linear.out_features))
    linear.reset_parameters()


def _widen_batch_norm(norm: nn.BatchNorm2d, factor: float, _reads: bool, _gives: bool) -> None:
    norm.num_features = scaled(norm.num_features, factor)
    if norm.affine:
        norm.weight, norm.bias = (nn.Parameter(torch.empty(norm.num_features)) for _ in range(2))
    if norm.track_running_stats:
        norm.running_mean, norm.running_var = (torch.empty(norm.num_features) for _ in range(2))
    norm.reset_parameters()


def _widen_layer_norm(norm: nn.LayerNorm, factor: float, _reads: bool, _gives: bool) -> None:
    norm.normalized_shape = tuple(scaled(size, factor) for size in norm.normalized_shape)
    norm.weight = nn.Parameter(torch.empty(norm.normalized_shape))
    norm.bias = nn.Parameter(torch.empty(norm.normalized_shape))
    norm.reset_parameters()


# kind -> function of (layer, factor, whether it reads the image, whether it gives the output)
_WIDENED: dict[type[nn.Module], Callable[..., None]] = {
    nn.Conv2d: _widen_conv,
    nn.Linear: _widen_linear,
    nn.BatchNorm2d: _widen_batch_norm,
    nn.LayerNorm: _widen_layer_norm,
}
