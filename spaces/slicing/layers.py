"""Size attributes of layers (channels, features, groups) after their tensors were replaced by narrower ones."""

from collections.abc import Container
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def fit_attributes(net: nn.Module, grouped: Container[str] = ()) -> None:
    """Set, in place, every layer's size attributes (channels, features, groups) to the sizes of its tensors.

    The attributes must be those before the cut: a convolution with as many groups as input channels is depthwise and
    gets one group per remaining channel; any other convolution keeps its number of groups. A second call changes
    nothing.

    Args:
        grouped: names of the weights of grouped convolutions that are not depthwise. An earlier cut may have left each
            of their groups a single input channel, as if they were.
    """
    for name, module in net.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, _ConvNd):
            _fit_convolution(module, may_be_depthwise=f"{name}.weight" not in grouped)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, _NormBase):
            _fit_norm(module)
        elif isinstance(getattr(module, "normalized_shape", None), tuple) and weight is not None:  # LayerNorm, RMSNorm
            module.normalized_shape = tuple(weight.shape)
        elif isinstance(module, nn.GroupNorm) and weight is not None:
            module.num_channels = len(weight)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.numel()
        elif callable(follow := getattr(module, "follow_tensors", None)):
            follow()


def _fit_convolution(layer: _ConvNd, may_be_depthwise: bool) -> None:
    first, second = layer.weight.shape[:2]
    depthwise = may_be_depthwise and 1 < layer.groups == layer.in_channels
    if layer.transposed:  # weight of shape (in, out / groups, ...)
        layer.groups = first if depthwise else layer.groups
        layer.in_channels, layer.out_channels = first, second * layer.groups
        return
    if depthwise:
        multiplier = layer.out_channels // layer.in_channels
        layer.groups = first // multiplier
    layer.in_channels, layer.out_channels = second * layer.groups, first


def _fit_norm(layer: _NormBase) -> None:
    # A layer without `affine` has no weight, and one without running statistics no buffer.
    sized: Any = layer.weight if layer.weight is not None else layer.running_mean
    if sized is not None:
        layer.num_features = len(sized)
