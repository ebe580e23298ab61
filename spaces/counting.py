"""What a real network costs, counted by fvcore: the judge of every cost model."""

import warnings

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from spaces.cost import Cost


def count_cost(net: nn.Module, input_shape: tuple[int, int, int]) -> Cost:
    """Count FLOPs for one image with fvcore, in eval mode, and parameters; independent of any cost model.

    The modes of the network's modules are restored. One multiply-add is one FLOP.

    Args:
        net: on any device but meta, since fvcore runs it.
        input_shape: channels, height and width of one image.
    """
    parameters = list(net.parameters())
    image = torch.zeros(1, *input_shape, device=parameters[0].device if parameters else None)
    modes = [(module, module.training) for module in net.modules()]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of Python code that depends on shapes
            analysis = FlopCountAnalysis(net.eval(), image)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
            flops = int(analysis.total())
    finally:
        for module, training in modes:
            module.training = training
    return Cost(flops, sum(parameter.numel() for parameter in parameters))
