"""The size of a network's file: measured on a file, and as a bound that follows from the widths.

A file holds the bytes of the tensors, which are a polynomial of the widths, and an overhead: names, shapes and, of a
program, its operations. The overhead is measured on the files of the dense and of the smallest network, and the larger
one counts for all, because it hardly depends on the widths. So the bound holds, and is close.
"""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from pruning.checkpoint import to_bytes
from pruning.formats import find_format, write_network
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from spaces.space import ModelSpec, SearchSpace
from spaces.widths import Widths

CHECKPOINT = "safetensors"  # the format in which every network of a search is kept


def file_size(net: nn.Module, name: str, space: SearchSpace, widths: Mapping[str, int], spec: ModelSpec | None) -> int:
    """Return the bytes of the file of a network.

    Args:
        name: of the format, a key of `pruning.formats.FORMATS`.
        widths: of the network, and `spec` of the dense one, as a checkpoint holds them.

    Raises:
        FormatError: the network cannot be written in this format.
    """
    if name == CHECKPOINT:
        return len(to_bytes(net, spec, widths))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{find_format(name).suffix}"
        return write_network(net, name, path, space.input_shape).stat().st_size


def with_file_size(space: SearchSpace, net: nn.Module, name: str, spec: ModelSpec | None) -> SearchSpace:
    """Return the space whose cost model bounds the size of a network's file.

    Args:
        net: the dense network.
        name: of the format; writing two networks takes seconds in those that hold a program.
        spec: of the dense network, as checkpoints of the search hold it.

    Raises:
        FormatError: the network cannot be written in this format.
    """
    bare, tensors = space.with_file(0), 0
    overheads = []
    for widths in (space.full, space.smallest):
        narrow = _distinct(net if widths == space.full else _cut(net, space, widths))
        tensors = len(narrow.state_dict())
        overheads.append(file_size(narrow, name, space, widths, spec) - (bare.cost(widths).size or 0))
    return space.with_file(max(overheads) + find_format(name).padding * tensors)


@torch.no_grad()
def _distinct(net: nn.Module) -> nn.Module:
    """Return a copy whose tensors all differ, as after training: equal ones of a fresh network are stored once."""
    copied, generator = copy.deepcopy(net), torch.Generator().manual_seed(0)
    for tensor in copied.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return copied


def _cut(net: nn.Module, space: SearchSpace, widths: Widths) -> nn.Module:
    """Return the network with the first channels of every group."""
    scores = {group.name: torch.arange(group.width, 0, -1.0) for group in space.variable}
    return slice_channels(net, space, select_channels(space, scores, widths)).eval()
