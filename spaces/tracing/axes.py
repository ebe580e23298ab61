"""The position of the channel axis after an operation that changes the shape of a tensor."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch

from spaces.tracing.operations import Flow


def reshaped(name: str, flow: Flow, before: Sequence[int], after: Sequence[int]) -> Flow | None:
    """Return the flow after a reshape; None where the reshape mixes the channels with other axes.

    Flattening the axes behind the channels is followed: each channel then stands at several consecutive indices.

    Args:
        name: name of the torch function.
        before, after: shapes of the input and the output.
    """
    axis = flow.axis
    if name in ("unsqueeze", "squeeze"):
        kept = [size for size in before if size != 1]
        if [size for size in after if size != 1] != kept or len(flow.ids) == 1:
            return None
        rank = sum(size != 1 for size in before[:axis])
        return Flow([i for i, size in enumerate(after) if size != 1][rank], flow.ids)
    if after[: axis + 1] == before[: axis + 1]:
        return flow
    if len(after) == axis + 1 and after[:axis] == before[:axis]:
        return Flow(axis, np.repeat(flow.ids, prod(before[axis + 1 :])))
    if prod(before[:axis]) == prod(after[:-1]) and before[axis:] == after[-1:]:
        return Flow(len(after) - 1, flow.ids)
    return None


def reduced(flow: Flow, ndim: int, dims: int | Sequence[int] | None, keep: bool) -> Flow | None:
    """Return the flow after a reduction; None where the channel axis itself is reduced.

    Args:
        dims: reduced dimensions; None stands for all.
        keep: whether reduced dimensions stay, with size one.
    """
    gone = {d % ndim for d in ([dims] if isinstance(dims, int) else dims or range(ndim))}
    if flow.axis in gone:
        return None
    return Flow(flow.axis - (0 if keep else sum(d < flow.axis for d in gone)), flow.ids)


def permuted(name: str, flow: Flow, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Flow:
    """Return the flow after the torch function `name`, which permutes the axes of its first argument."""
    # The same permutation of a tensor whose sizes number its axes shows the new position of the axis.
    probe = torch.empty(tuple(range(1, args[0].ndim + 1)), device="meta")
    with torch._C.DisableTorchFunction():
        moved = (
            getattr(torch, name)(probe, *args[1:], **kwargs)
            if name != "permute"
            else probe.permute(*args[1:], **kwargs)
        )
    return Flow(list(moved.shape).index(flow.axis + 1), flow.ids)
