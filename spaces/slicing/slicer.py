"""Slicing: keeps channels of every tensor of a network in one pass over its weights, and rebuilds the network."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spaces.slicing.filters import as_filters, as_stored
from spaces.slicing.layers import fit_attributes
from spaces.slicing.sizes import set_sizes
from spaces.space import SearchSpace, SizeName

CACHED_ELEMENTS = 2**18  # 1 MiB of float32, about the size of a core's second-level cache

# Channel id -> whether the channel is kept. The extra last entry is for id -1: indices of no channel are always kept.
KeptIds = NDArray[np.bool_]


def sliced(model: nn.Module, space: SearchSpace, kept: KeptIds) -> nn.Module:
    """Return a new network with the kept channels only; `model` is left untouched."""
    return rebuilt(model, space, Slicer(space, kept))


class Narrowing(Protocol):
    """Makes the tensors of a narrow network from those of the dense one."""

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return what becomes of the tensor of that name."""
        ...

    def length(self, ids: NDArray[np.int64]) -> int:
        """Return how long an axis with these channels becomes."""
        ...


def rebuilt(model: nn.Module, space: SearchSpace, narrowed: Narrowing) -> nn.Module:
    """Return a copy of a network whose parameters, buffers and written sizes are those of a narrow one.

    Parameters and buffers that are one object in the network (tied weights) stay one object in the copy.
    """
    # deepcopy finds every tensor already "copied" in the memo, so the module tree is rebuilt around the narrow ones.
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = narrowed(name, parameter.detach())
            memo[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
        for name, buffer in model.named_buffers():
            memo[id(buffer)] = narrowed(name, buffer)
    narrow = copy.deepcopy(model, memo)
    fit_attributes(narrow, space.grouped)
    set_sizes(narrow, narrow_sizes(space, narrowed))
    return narrow


def narrow_sizes(space: SearchSpace, narrowed: Narrowing) -> dict[SizeName, int]:
    """Return the written sizes that are others in a narrow network."""
    lengths = {name: narrowed.length(ids) for name, ids in space.sizes.items()}
    return {name: length for name, length in lengths.items() if length != len(space.sizes[name])}


def assign_tensors(net: nn.Module, tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    """Replace, in place, the parameters and buffers of a network by tensors of other shapes.

    Args:
        tensors: name -> tensor; a name that is missing keeps its tensor, unless it is an alias.
        aliases: name of a tensor that is the same object as another one -> name of the other one.
    """
    placed: dict[str, Tensor] = {}
    named = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers(remove_duplicate=False))
    for name, old in named.items():
        first = aliases.get(name, name)
        if first not in tensors:
            continue
        if first not in placed:
            new = tensors[first]
            placed[first] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        parent, _, attribute = name.rpartition(".")
        setattr(net.get_submodule(parent), attribute, placed[first])


@dataclass(frozen=True)
class _KeptIndices:
    """The kept indices of an axis, in units of `positions` consecutive indices (several where maps were flattened)."""

    index: Tensor
    positions: int

    @classmethod
    def of(cls, kept: NDArray[np.int64], ids: NDArray[np.int64]) -> "_KeptIndices":
        changes = np.flatnonzero(np.diff(ids[: len(ids)])) + 1 if ids[0] == ids[min(1, len(ids) - 1)] else [1]
        positions = int(changes[0]) if len(changes) else 1
        if positions > 1 and len(ids) % positions == 0 and (ids.reshape(-1, positions) == ids[::positions, None]).all():
            return cls(torch.from_numpy(kept[::positions] // positions), positions)
        return cls(torch.from_numpy(kept), 1)

    def select(self, tensor: Tensor, dim: int) -> Tensor:
        index = self.index.to(tensor.device)
        if self.positions == 1:
            return tensor.index_select(dim, index)
        by_channel = tensor.reshape(*tensor.shape[:dim], -1, self.positions, *tensor.shape[dim + 1 :])
        return by_channel.index_select(dim, index).flatten(dim, dim + 1)


def _select_both(weight: Tensor, rows: _KeptIndices, columns: _KeptIndices) -> Tensor:
    """Select along dimensions 0 and 1, a few rows at a time so that the intermediate copy stays in the cache."""
    step = max(1, CACHED_ELEMENTS // max(1, weight[0].numel()))
    chunks = rows.index.split(step) if rows.positions == 1 else (rows.index,)
    narrow = [columns.select(_KeptIndices(chunk, rows.positions).select(weight, 0), 1) for chunk in chunks]
    return narrow[0] if len(narrow) == 1 else torch.cat(narrow)


class Slicer:
    """Slices one tensor at a time; kept indices are computed once for all axes that share one array of ids."""

    def __init__(self, space: SearchSpace, kept: KeptIds) -> None:
        self._space = space
        self._kept = kept
        self._known: dict[int, _KeptIndices | None] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return the kept channels of the tensor of that name."""
        axes = self._space.axes.get(name, {})
        indices = {dim: index for dim, ids in axes.items() if (index := self._indices(ids)) is not None}
        if not indices:
            return tensor.clone()
        narrow = self._narrow(name, as_filters(self._space, name, tensor), indices)
        return as_stored(self._space, name, narrow)

    def _narrow(self, name: str, filters: Tensor, indices: Mapping[int, _KeptIndices]) -> Tensor:
        if name in self._space.grouped:
            return self._slice_grouped(name, filters)
        if set(indices) == {0, 1}:
            return _select_both(filters, indices[0], indices[1])
        for dim, kept in indices.items():
            filters = kept.select(filters, dim)
        return filters

    def length(self, ids: NDArray[np.int64]) -> int:
        """Return how many indices of an axis are kept."""
        return int(self._kept[ids].sum())

    def _indices(self, ids: NDArray[np.int64]) -> _KeptIndices | None:
        """Return the kept indices of an axis; None when all are kept."""
        key = id(ids)
        if key not in self._known:
            kept = np.flatnonzero(self._kept[ids])
            self._known[key] = None if len(kept) == len(ids) else _KeptIndices.of(kept, ids)
        return self._known[key]

    def _slice_grouped(self, name: str, weight: Tensor) -> Tensor:
        """Slice a weight of shape (out, in / groups, ...); every group keeps input channels of its own."""
        groups = self._space.grouped[name]
        axes = self._space.axes[name]
        every_row = np.full(weight.shape[0], -1, dtype=np.int64)
        every_column = np.full(weight.shape[1] * groups, -1, dtype=np.int64)
        rows = np.flatnonzero(self._kept[axes.get(0, every_row)])
        columns = np.flatnonzero(self._kept[axes.get(1, every_column)]).reshape(groups, -1) % weight.shape[1]
        kept = weight[torch.from_numpy(rows).to(weight.device)]
        kept = kept.reshape(groups, -1, *kept.shape[1:])
        index = torch.from_numpy(columns).to(weight.device).view(groups, 1, -1, *[1] * (weight.ndim - 2))
        index = index.expand(-1, kept.shape[1], -1, *kept.shape[3:])
        return kept.gather(2, index).flatten(0, 1).contiguous()
