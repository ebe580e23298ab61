"""Which convolutions may share kernels, and which channels are read by anything else.

The paper leaves out the layer that sees the image and the classifier; depthwise layers have one kernel per channel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spaces.groups import ChannelGroup
from spaces.space import SearchSpace

OUTPUT = "network output"  # why the space fixes the channels of a classifier


@dataclass(frozen=True)
class Reader:
    """A convolution whose kernels may be shared.

    Attributes:
        positions: outputs of one channel for one image, over all its uses.
        area: numbers of a kernel.
        groups: of the convolution.
        inputs, outputs: channel ids of the space along its weight; -1 for what is never cut.
    """

    name: str
    positions: int
    area: int
    groups: int
    inputs: NDArray[np.int64]
    outputs: NDArray[np.int64]


def find_readers(net: nn.Module, space: SearchSpace) -> tuple[Reader, ...]:
    """Return the convolutions whose kernels may be shared.

    These are all but depthwise ones, those that see the image, a convolution that classifies, and those that pad with
    anything but zeros, share their weight with another layer, or are called in other ways than as layers.
    """
    outputs: dict[str, int] = {}

    def note(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def seen(module: nn.Module, given: object, result: Tensor) -> None:
            outputs[name] = outputs.get(name, 0) + result.shape[2] * result.shape[3]

        return seen

    convolutions = {name: each for name, each in net.named_modules() if type(each) is nn.Conv2d}
    handles = [each.register_forward_hook(note(name)) for name, each in convolutions.items()]
    try:
        with torch.no_grad():
            net(torch.zeros(1, *space.input_shape, device=next(net.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    weights = [id(each) for module in net.modules() for each in module._parameters.values()]
    classifying = ids_of([group for group in space.groups if group.fixed == OUTPUT])
    readers = []
    for name, conv in convolutions.items():
        axes = space.axes.get(f"{name}.weight", {})
        written = axes.get(0, np.full(conv.out_channels, -1))
        shared = weights.count(id(conv.weight)) > 1 or conv.padding_mode != "zeros" or name not in outputs
        if shared or 1 not in axes or (axes[1] < 0).any() or np.isin(written, classifying).any():
            continue
        area = conv.kernel_size[0] * conv.kernel_size[1]
        readers.append(Reader(name, outputs[name], area, conv.groups, axes[1], written))
    return tuple(readers)


def needed_ids(net: nn.Module, space: SearchSpace, readers: Sequence[Reader]) -> NDArray[np.bool_]:
    """Return, for every channel id, whether something else than `readers` reads it, or it may not be cut at all.

    Layers that normalise over channels read them too. What is read by nothing at all is needed, for want of a reason.
    """
    last = space.groups[-1]
    read = np.zeros(last.start + last.width, dtype=bool)
    needed = np.ones_like(read)
    for each in readers:
        read[each.inputs] = True
    needed[ids_of(space.variable)] = ~read[ids_of(space.variable)]
    names = {f"{each.name}.weight" for each in readers}
    mixing = {f"{name}.weight" for name, each in net.named_modules() if isinstance(each, nn.LayerNorm | nn.GroupNorm)}
    for name, axes in space.axes.items():
        for dim, ids in axes.items():
            if (dim > 0 and name not in names) or name in mixing:
                needed[ids[ids >= 0]] = True
    return needed


def ids_of(groups: Sequence[ChannelGroup]) -> NDArray[np.int64]:
    """Return the channel ids of groups."""
    return np.array([i for each in groups for i in range(each.start, each.start + each.width)], dtype=np.int64)
