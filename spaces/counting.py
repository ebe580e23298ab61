"""The cost of a real network as fvcore counts it; every cost model must agree with it."""

import warnings

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from spaces.cost import Cost


def count_cost(net: nn.Module, input_shape: tuple[int, int, int]) -> Cost:
    """Count the FLOPs of one image in eval mode with fvcore, and the parameters; no cost model is involved.

    The modes of the network's modules are restored. One multiply-add is one FLOP. A layer that computes the same in
    several forms has an attribute `counting`: it is true here, and the layer then computes in the form that is counted.

    Args:
        net: on any device but meta, because fvcore runs the network.
        input_shape: channels, height and width of one image.
    """
    return Cost(count_by_layer(net, input_shape)[""], sum(parameter.numel() for parameter in net.parameters()))


def count_by_layer(net: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """Count as `count_cost` does; return the FLOPs of every layer and all layers inside it, "" for the network."""
    parameters = list(net.parameters())
    image = torch.zeros(1, *input_shape, device=parameters[0].device if parameters else None)
    modes = [(module, module.training) for module in net.modules()]
    formed = [(module, module.counting) for module in net.modules() if hasattr(module, "counting")]
    try:
        for module, _ in formed:
            module.counting = True  # type: ignore[assignment]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit warns about Python code that depends on shapes
            analysis = FlopCountAnalysis(net.eval(), image)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
            counts = {name: int(flops) for name, flops in analysis.by_module().items()}
    finally:
        for module, training in modes:
            module.training = training
        for module, counting in formed:
            module.counting = counting
    return counts
