"""Surgery: a narrow network from a wide one in one pass over its weights."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.base import PruningError
from pruning.rewriting.index_maps import Clusters, MergedDimension, NetworkClusters
from pruning.rewriting.layers import fit_attributes
from pruning.selection import KeptIds, Selection, kept_ids
from spaces.space import SearchSpace

CACHED_ELEMENTS = 2**18  # 1 MiB of float32, about the size of a core's second-level cache


def slice_channels(model: nn.Module, space: SearchSpace, selection: Selection) -> nn.Module:
    """Return a new network that keeps only the selected channels; `model` is left untouched.

    Args:
        model: the dense network that `space` was traced from.
        selection: group name -> kept channel indices, ascending; a group that is not named keeps all.

    Raises:
        PruningError: a selection that is empty, out of range, not ascending, or unequal over the groups of a grouped
            convolution; tensors whose shapes differ from the traced network.
    """
    _check_selection(space, selection)
    return _rebuilt(model, space, _Slicer(space, kept_ids(space, selection)))


def merge_channels(model: nn.Module, space: SearchSpace, clusters: Clusters) -> nn.Module:
    """Return a new network in which every cluster of channels is one channel; `model` is left untouched.

    Filters, BatchNorm weights and statistics of a cluster are replaced by their mean, and layers that read the cluster
    sum the weights of its inputs (Ding et al., arXiv 1904.03837, who keep one member instead of the mean). Where the
    members are equal the output does not change, in evaluation mode or in training; layers that normalise over
    channels (LayerNorm, GroupNorm) are the exception, unless all clusters that they normalise together are equally
    large.

    Args:
        model: the dense network that `space` was traced from.
        clusters: group name -> cluster of each channel; a group that is not named keeps all.

    Raises:
        PruningError: clusters that `NetworkClusters` refuses; tensors whose shapes differ from the traced network.
    """
    return _rebuilt(model, space, _Merger(space, NetworkClusters(space, clusters)))


def _rebuilt(model: nn.Module, space: SearchSpace, narrowed: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """Return a copy of a network whose parameters and buffers are replaced by the results of `narrowed(name, tensor)`.

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
    return narrow


def _check_selection(space: SearchSpace, selection: Selection) -> None:
    for name, indices in selection.items():
        if name not in space.by_name:
            raise PruningError(f"{name!r} is no group of this network; known: {', '.join(space.by_name)}")
        group = space.by_name[name]
        kept = indices.detach().cpu().numpy()
        if not len(kept) or kept[0] < 0 or kept[-1] >= group.width or (np.diff(kept) <= 0).any():
            raise PruningError(
                f"selection of {name!r} must be ascending indices in [0, {group.width}), at least one; got {kept[:8]}"
            )
        if len(set(np.bincount(kept * group.conv_groups // group.width, minlength=group.conv_groups).tolist())) > 1:
            raise PruningError(
                f"selection of {name!r} must keep equally many channels in each of its {group.conv_groups} conv groups"
            )


def _check_shape(space: SearchSpace, name: str, tensor: Tensor) -> None:
    groups = space.grouped.get(name, 1)
    for dim, ids in space.axes.get(name, {}).items():
        length = len(ids) // groups if dim == 1 else len(ids)
        if tensor.shape[dim] != length:
            raise PruningError(
                f"{name} has shape {tuple(tensor.shape)}, but the space was traced with {length} at dimension "
                f"{dim}; slice the network that was traced"
            )


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


class _Slicer:
    """Slices one tensor at a time; kept indices are computed once for all axes that share one array of ids."""

    def __init__(self, space: SearchSpace, kept: KeptIds) -> None:
        self._space = space
        self._kept = kept
        self._known: dict[int, _KeptIndices | None] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        axes = self._space.axes.get(name, {})
        _check_shape(self._space, name, tensor)
        indices = {dim: index for dim, ids in axes.items() if (index := self._indices(ids)) is not None}
        if not indices:
            return tensor.clone()
        if name in self._space.grouped:
            return self._slice_grouped(name, tensor)
        if set(indices) == {0, 1}:
            return _select_both(tensor, indices[0], indices[1])
        for dim, kept in indices.items():
            tensor = kept.select(tensor, dim)
        return tensor

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


class _Merger:
    """Merges one tensor at a time, on the CPU, where sums are the same every time."""

    def __init__(self, space: SearchSpace, clusters: NetworkClusters) -> None:
        self._space = space
        self._clusters = clusters
        self._merged: dict[str, list[MergedDimension]] = {}
        for merged in clusters.merged_dimensions():
            self._merged.setdefault(merged.tensor, []).append(merged)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        _check_shape(self._space, name, tensor)
        narrow = tensor.cpu()
        for merged in self._merged.get(name, ()):
            narrow = self._summed(merged, narrow) if merged.summed else merged.index_map.means(narrow, merged.dim)
        return narrow.to(tensor.device) if narrow is not tensor else tensor.clone()

    def _summed(self, merged: MergedDimension, weight: Tensor) -> Tensor:
        """Sum the inputs of every cluster; each conv group of rows has input channels of its own."""
        conv_groups = self._clusters.conv_groups_of(merged)
        parts = weight.chunk(conv_groups)
        maps = [merged.index_map.of_conv_group(number, conv_groups) for number in range(conv_groups)]
        return torch.cat([part_map.sums(part, merged.dim) for part_map, part in zip(maps, parts, strict=True)])
