"""The position of the channel axis after an operation that changes the shape of a tensor."""

from collections.abc import Callable, Mapping, Sequence
from math import gcd
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from spaces.tracing.labels import Ids
from spaces.tracing.operations import Flow

NO_CHANNEL = -1  # stands in for elements of tensors without channels


class Moved(NamedTuple):
    """The channels of a tensor whose elements were moved.

    Attributes:
        flow: along the axis that holds the most of them.
        others: those of every further line along this axis, where the channels lie along several axes (`radix`, heads,
            the groups of a shuffle). The tensor gets narrower along one axis alone if all lines lose the same indices.
    """

    flow: Flow
    others: tuple[Ids, ...] = ()


def moved(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    flow_of: Callable[[Any], Flow | None],
) -> list[Moved] | None:
    """Return where the channels go in every tensor that a function gives which only moves elements.

    The function is done to the channel ids themselves, spread over the shapes of its arguments.

    Args:
        flow_of: the flow of an argument; None for one without channels.

    Returns:
        None where some output holds a single channel, or channels beside elements that are no channel.
    """

    def as_ids(value: Any) -> Any:
        flow = flow_of(value)
        if flow is not None:
            return _spread(flow, value.shape)
        if not isinstance(value, Tensor):
            return value
        indexes = not value.is_floating_point() and value.device.type != "meta"
        return value.detach().cpu() if indexes else torch.full(value.shape, NO_CHANNEL, dtype=torch.int64)

    with torch._C.DisableTorchFunction():
        try:
            out = func(*tree_map(as_ids, tuple(args)), **tree_map(as_ids, dict(kwargs)))
        except (RuntimeError, IndexError, TypeError):  # torch does not do this to integers
            return None
    found = [_gathered(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    known = [one for one in found if one is not None]
    return known if len(known) == len(found) else None


def _spread(flow: Flow, shape: Sequence[int]) -> Tensor:
    ids = torch.from_numpy(flow.ids)
    return ids.reshape([-1 if axis == flow.axis else 1 for axis in range(len(shape))]).expand(tuple(shape)).contiguous()


def _gathered(ids: Tensor) -> Moved | None:
    """Return along which axis channels lie; of several the one with the most channels, and the last of equal ones."""
    axes = [axis for axis, size in enumerate(ids.shape) if size > 1 and _differs(ids, axis)]
    if not axes or bool((ids == NO_CHANNEL).any()):
        return None
    corner = ids[tuple(slice(None) if axis in axes else slice(1) for axis in range(ids.ndim))]
    lines = {axis: corner.movedim(axis, 0).reshape(corner.shape[axis], -1) for axis in axes}
    chosen = max(axes, key=lambda axis: (len(lines[axis][:, 0].unique()), axis))
    first, *others = (line.numpy().copy() for line in lines[chosen].unbind(1))
    return Moved(Flow(chosen, first), tuple(others))


def _differs(ids: Tensor, axis: int) -> bool:
    return bool((ids != ids.narrow(axis, 0, 1)).any())


def equal_parts(whole: Ids, parts: Sequence[Ids]) -> int:
    """Return into how many equal blocks an axis must be split so that every part consists of whole blocks.

    A narrow network keeps equally many channels in each block.

    Returns:
        0 where the parts are no consecutive pieces of the axis.
    """
    block = len(whole)
    for part in parts:
        starts = np.flatnonzero(whole == part[0])
        if not len(starts) or not np.array_equal(whole[starts[0] : starts[0] + len(part)], part):
            return 0
        block = gcd(block, int(starts[0]), len(part))
    return len(whole) // block


def reduced_axes(ndim: int, dims: int | Sequence[int] | None) -> set[int]:
    """Return the axes that a reduction over `dims` reduces; None, and no dimension, stand for all."""
    return {d % ndim for d in ([dims] if isinstance(dims, int) else dims or range(ndim))}


def reduced(flow: Flow, ndim: int, dims: int | Sequence[int] | None, keep: bool) -> Flow:
    """Return the flow after a reduction of other axes than that of the channels.

    Args:
        dims: as `reduced_axes` takes them.
        keep: whether reduced dimensions stay, with size one.
    """
    gone = reduced_axes(ndim, dims)
    return Flow(flow.axis - (0 if keep else sum(d < flow.axis for d in gone)), flow.ids)
