"""Rescaling: trained weights before a BatchNorm get the norm of fresh ones, which changes the steps, not the network.

A layer whose outputs go into a BatchNorm computes the same with weights of any scale, but a step of SGD turns the
weights by an angle proportional to the learning rate over their squared norm (van Laarhoven, "L2 Regularization versus
Batch and Weight Normalization", 2017). Weights grow while they are trained, and compensation for removed channels adds
to them, so a narrow network that is trained on takes smaller steps than its learning rate says.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runners.training.scoring import evaluating

SCALED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
TOLERANCE = 1e-2  # of the outputs, relative to the largest one; convolutions in TF32 keep about 1e-3


@torch.no_grad()
def rescale(net: nn.Module, images: Tensor) -> int:
    """Give the weights before every BatchNorm, in place, the norm that a fresh layer of PyTorch has.

    That is sqrt(outputs / 3): `kaiming_uniform_(a=sqrt(5))` draws weights of variance 1 / (3 fan_in). The outputs of
    the network in evaluation mode stay the same. Where they would not (another operation reads what the BatchNorm
    reads, too), nothing is changed.

    Args:
        net: on the device of the images; its mode is kept.
        images: of shape (B, C, H, W); one is enough.

    Returns:
        Number of layers whose weights were scaled.
    """
    with evaluating(net):
        with _recording(net) as pairs:
            before = net(images)
        if not pairs or not isinstance(before, Tensor):
            return 0
        scaled = [
            tensor for layer, norm in pairs for tensor in (*layer.parameters(), *norm.parameters(), *norm.buffers())
        ]
        kept = [tensor.clone() for tensor in scaled]
        for layer, norm in pairs:
            _scale(layer, norm)
        if torch.allclose(net(images), before, rtol=0, atol=TOLERANCE * float(before.abs().max())):
            return len(pairs)
        for tensor, value in zip(scaled, kept, strict=True):
            tensor.copy_(value)
        return 0


@contextmanager
def _recording(net: nn.Module) -> Iterator[list[tuple[Any, _BatchNorm]]]:
    """Collect, of the passes inside the block, the plain layers whose output a BatchNorm takes; each called once."""
    made: list[tuple[nn.Module, Tensor]] = []
    taken: list[tuple[_BatchNorm, Tensor | None]] = []
    pairs: list[tuple[Any, _BatchNorm]] = []
    handles = [
        module.register_forward_hook(lambda layer, _, output: made.append((layer, output)))
        for module in net.modules()
        if type(module) in SCALED
    ]
    handles += [
        module.register_forward_pre_hook(lambda norm, inputs: taken.append((norm, next(iter(inputs), None))))
        for module in net.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    try:
        yield pairs
    finally:
        for handle in handles:
            handle.remove()
    layers, norms = [layer for layer, _ in made], [norm for norm, _ in taken]
    for norm, tensor in taken:
        layer = next((layer for layer, output in made if output is tensor), None)
        if layer is not None and layers.count(layer) == norms.count(norm) == 1:
            pairs.append((layer, norm))


def _scale(layer: nn.Conv2d | nn.Linear, norm: _BatchNorm) -> None:
    """Scale the weights of a layer, and have the BatchNorm after it compute what it did."""
    size = float(layer.weight.norm())
    mean, var = norm.running_mean, norm.running_var
    if not size or mean is None or var is None:
        return
    factor = math.sqrt(layer.weight.shape[0] / 3) / size
    layer.weight.mul_(factor)
    if layer.bias is not None:
        layer.bias.mul_(factor)
    mean.mul_(factor)
    if norm.affine:  # the constant that is added to the variance is not scaled
        norm.weight.mul_(((factor**2 * var + norm.eps) / (factor**2 * (var + norm.eps))).sqrt())
    var.mul_(factor**2)
