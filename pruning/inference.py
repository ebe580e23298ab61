"""A network as it runs: layers that can compute in several equal forms become plain modules of their chosen form."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pruning.base import LayerWithForms


def layers_with_forms(net: nn.Module) -> dict[str, LayerWithForms]:
    """Return the layers of a network that compute the same in several forms, by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, LayerWithForms)}


def for_inference(net: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation mode, in which layers with several forms are modules of their form.

    The copy computes what `net` computes in evaluation, up to the rounding of sums. Programs are exported and latencies
    are measured of it. Weights trained afterwards are not those of `net`.
    """
    net = copy.deepcopy(net).eval()
    for name, layer in layers_with_forms(net).items():
        module = layer.inference_module(layer.form or layer.forms()[0]).eval()
        if not name:
            return module
        net.set_submodule(name, module)
    return net


# Called as fastest(modules, input): returns the index of the module that computes its output first.
Fastest = Callable[[Sequence[nn.Module], Tensor], int]


def choose_forms(net: nn.Module, images: Tensor, fastest: Fastest) -> None:
    """Set the form of every layer of `net` that has none chosen yet to its fastest one; nothing else is changed.

    Args:
        images: shape (B, C, H, W), in the number format and on the device of the network.
    """
    layers = {name: layer for name, layer in layers_with_forms(net).items() if layer.form is None}
    if not layers:
        return
    modes = [(module, module.training) for module in net.modules()]
    try:
        with torch.no_grad():
            for name, images_of_layer in _inputs(net.eval(), images, layers).items():
                forms = layers[name].forms()
                modules = [layers[name].inference_module(form).eval() for form in forms]
                layers[name].form = forms[fastest(modules, images_of_layer)]
    finally:
        for module, training in modes:
            module.training = training


def _inputs(net: nn.Module, images: Tensor, layers: Mapping[str, LayerWithForms]) -> dict[str, Tensor]:
    """Return the input of every layer at its last call, by the layer's name."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs[name] = args[0]

    handles = [net.get_submodule(name).register_forward_pre_hook(partial(keep, name)) for name in layers]
    try:
        net(images)
    finally:
        for handle in handles:
            handle.remove()
    return inputs
