"""Which convolutions may share kernels, and which channels other layers read.

The paper leaves out the layer that reads the image and the classifier. A depthwise layer has one kernel per channel,
so there is nothing to share.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spaces.groups import ChannelGroup
from spaces.space import SearchSpace

OUTPUT = "network output"  # the reason for which a space fixes the channels of a classifier


@dataclass(frozen=True)
class ShareableConv:
    """A convolution whose kernels may be shared.

    Attributes:
        positions: output positions of one channel for one image, summed over all calls of the layer.
        area: numbers in a kernel.
        groups: of the convolution.
        inputs, outputs: channel ids of the space along its weight; -1 for channels that are never cut.
    """

    name: str
    positions: int
    area: int
    groups: int
    inputs: NDArray[np.int64]
    outputs: NDArray[np.int64]


def find_shareable_convs(net: nn.Module, space: SearchSpace) -> tuple[ShareableConv, ...]:
    """Return the convolutions whose kernels may be shared.

    These are all 2-D convolutions but depthwise ones, those that read the image, one that classifies, and those that
    pad with anything but zeros, share their weight with another layer, or are never called as layers.
    """
    positions: dict[str, int] = {}

    def count_positions(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            positions[name] = positions.get(name, 0) + output.shape[2] * output.shape[3]

        return hook

    convs = {name: module for name, module in net.named_modules() if type(module) is nn.Conv2d}
    handles = [conv.register_forward_hook(count_positions(name)) for name, conv in convs.items()]
    modes = [(module, module.training) for module in net.modules()]
    net.eval()  # in training, the image would change the running statistics of BatchNorm
    try:
        with torch.no_grad():
            net(torch.zeros(1, *space.input_shape, device=next(net.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    parameters = [id(parameter) for module in net.modules() for parameter in module._parameters.values()]
    classifying = ids_of([group for group in space.groups if group.fixed == OUTPUT])
    shareable = []
    for name, conv in convs.items():
        axes = space.axes.get(f"{name}.weight", {})
        outputs = axes.get(0, np.full(conv.out_channels, -1))
        excluded = parameters.count(id(conv.weight)) > 1 or conv.padding_mode != "zeros" or name not in positions
        if excluded or 1 not in axes or (axes[1] < 0).any() or np.isin(outputs, classifying).any():
            continue
        area = conv.kernel_size[0] * conv.kernel_size[1]
        shareable.append(ShareableConv(name, positions[name], area, conv.groups, axes[1], outputs))
    return tuple(shareable)


def needed_ids(net: nn.Module, space: SearchSpace, convs: Sequence[ShareableConv]) -> NDArray[np.bool_]:
    """Return, for every channel id, whether it must stay although no layer of `convs` reads it.

    That is so where another layer reads it, where its group is fixed, and where no layer reads it at all: nothing then
    shows that it can go. Layers that normalise over channels read them too.
    """
    last = space.groups[-1]
    read = np.zeros(last.start + last.width, dtype=bool)
    needed = np.ones_like(read)
    for conv in convs:
        read[conv.inputs] = True
    needed[ids_of(space.variable)] = ~read[ids_of(space.variable)]
    weights = {f"{conv.name}.weight" for conv in convs}
    mixing = {f"{name}.weight" for name, layer in net.named_modules() if isinstance(layer, nn.LayerNorm | nn.GroupNorm)}
    for name, axes in space.axes.items():
        for dim, ids in axes.items():
            if (dim > 0 and name not in weights) or name in mixing:
                needed[ids[ids >= 0]] = True
    return needed


def ids_of(groups: Sequence[ChannelGroup]) -> NDArray[np.int64]:
    """Return the channel ids of groups."""
    return np.array([i for group in groups for i in range(group.start, group.start + group.width)], dtype=np.int64)
