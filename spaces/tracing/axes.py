"""Where the axis of the channels goes when a tensor changes its shape."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch

from spaces.tracing.operations import Flow


def reshaped(name: str, flow: Flow, before: Sequence[int], after: Sequence[int]) -> Flow | None:
    """Return the channels after a reshape, flattened maps included; None where it mixes them with other axes.

    Args:
        name: of the torch function.
        before: shape, as is `after`.
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
    """Return the channels after a reduction; None where it goes over them.

    Args:
        dims: that are reduced; none stands for all.
        keep: whether they stay, with size one.
    """
    gone = {d % ndim for d in ([dims] if isinstance(dims, int) else dims or range(ndim))}
    if flow.axis in gone:
        return None
    return Flow(flow.axis - (0 if keep else sum(d < flow.axis for d in gone)), flow.ids)


def permuted(name: str, flow: Flow, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Flow:
    """Return the channels after a call of the torch function `name` that puts axes in another order."""
    # The same permutation of a tensor whose sizes are the axis numbers tells where the axis went.
    probe = torch.empty(tuple(range(1, args[0].ndim + 1)), device="meta")
    with torch._C.DisableTorchFunction():
        moved = (
            getattr(torch, name)(probe, *args[1:], **kwargs)
            if name != "permute"
            else probe.permute(*args[1:], **kwargs)
        )
    return Flow(list(moved.shape).index(flow.axis + 1), flow.ids)
