"""Cluster index maps: which index of a narrow axis each index of a wide axis becomes when channels are merged."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruning.base import PruningError
from pruning.rewriting.float64 import has_float64
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace

# Group name -> the cluster of each of its channels, int64 of shape (group.width,). Clusters are numbered from 0 in the
# order of their smallest channels, which become the channels of the narrow net. A missing group keeps all channels.
Clusters = Mapping[str, Tensor]


@dataclass(frozen=True)
class ClusterIndexMap:
    """The map of one axis: indices that become the same narrow index are the members of a cluster.

    Attributes:
        index: narrow index of each wide index; shape (wide,).
        first: smallest wide index of each narrow index; shape (narrow,).
        counts: number of members of each narrow index; float64 of shape (narrow,).
    """

    index: Tensor
    first: Tensor
    counts: Tensor

    @classmethod
    def of(cls, index: NDArray[np.int64], first: NDArray[np.int64]) -> "ClusterIndexMap":
        """Build from arrays; every narrow index must occur in `index`."""
        counts = torch.from_numpy(np.bincount(index, minlength=len(first)).astype(np.float64))
        return cls(torch.from_numpy(index), torch.from_numpy(first), counts)

    def to(self, device: torch.device) -> "ClusterIndexMap":
        """Return the map on a device; counts become float32 where the device has no float64."""
        counts = self.counts if has_float64(device) else self.counts.float()
        return ClusterIndexMap(self.index.to(device), self.first.to(device), counts.to(device))

    def of_conv_group(self, number: int, conv_groups: int) -> "ClusterIndexMap":
        """Return the map of one conv group's part of the axis, from which no cluster extends into another part."""
        wide, narrow = len(self.index) // conv_groups, len(self.first) // conv_groups
        index = self.index[number * wide : (number + 1) * wide] - number * narrow
        first = self.first[number * narrow : (number + 1) * narrow] - number * wide
        return ClusterIndexMap(index, first, self.counts[number * narrow : (number + 1) * narrow])

    def along(self, values: Tensor, like: Tensor, dim: int) -> Tensor:
        """Shape one value per narrow index so that it multiplies a tensor along `dim`."""
        shape = [1] * like.ndim
        shape[dim] = -1
        return values.to(like.dtype).reshape(shape)

    def sums(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Return the sum over the members of every cluster along `dim`."""
        shape = (*tensor.shape[:dim], len(self.first), *tensor.shape[dim + 1 :])
        return tensor.new_zeros(shape).index_add_(dim, self.index, tensor)

    def means(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Return the mean of every cluster along `dim`; exactly the members' value where all members are equal."""
        first = tensor.index_select(dim, self.first)
        offsets = self.sums(tensor - self.expand(first, dim), dim)
        return first + offsets / self.along(self.counts, tensor, dim)

    def expand(self, narrow: Tensor, dim: int = 0) -> Tensor:
        """Return the wide tensor in which every member has the value of its cluster."""
        return narrow.index_select(dim, self.index)

    def deviation(self, tensor: Tensor, dim: int = 0) -> float:
        """Return max |x - mean of its cluster| / max |x|; 0 for a tensor of zeros."""
        largest = float(tensor.abs().max())
        deviation = float((tensor - self.expand(self.means(tensor, dim), dim)).abs().max())
        return deviation / largest if largest else 0.0


@dataclass(frozen=True)
class MergedDimension:
    """One dimension of one tensor that merging narrows: equal members are averaged, inputs of a consumer are summed.

    The dimension is that of `spaces.slicing.filters.as_filters`.
    """

    tensor: str
    dim: int
    index_map: ClusterIndexMap
    summed: bool


class NetworkClusters:
    """The clusters of a network's channels, followed to every axis that holds the channels.

    Raises:
        PruningError: clusters of an unknown or fixed group, of a wrong shape, not numbered as `Clusters` says, or
            unequal over the groups of a grouped convolution.
    """

    def __init__(self, space: SearchSpace, clusters: Clusters) -> None:
        self._space = space
        last = space.groups[-1]
        self._target = np.arange(last.start + last.width)  # channel id -> id of the first channel of its cluster
        for name, labels in clusters.items():
            if name not in space.by_name or space.by_name[name].fixed:
                known = ", ".join(group.name for group in space.variable)
                raise PruningError(f"{name!r} is no variable group of this network; known: {known}")
            group = space.by_name[name]
            first = _first_channels(group, labels.detach().cpu().numpy())
            self._target[group.start : group.start + group.width] = group.start + first
        self._consumer_weights = {space.layers[layer].weight for group in space.groups for layer in group.consumers}
        self._known: dict[int, ClusterIndexMap | None] = {}

    def merged_dimensions(self) -> Iterator[MergedDimension]:
        """Yield every dimension of every tensor on which several indices become one."""
        for name, dims in self._space.axes.items():
            for dim, ids in dims.items():
                index_map = self._index_map(ids)
                if index_map is not None:
                    yield MergedDimension(name, dim, index_map, summed=dim == 1 and name in self._consumer_weights)

    def conv_groups_of(self, merged: MergedDimension) -> int:
        """Return the number of conv groups among which the inputs of a grouped convolution are split; else 1."""
        return self._space.grouped.get(merged.tensor, 1) if merged.summed else 1

    def length(self, ids: NDArray[np.int64]) -> int:
        """Return how many indices of an axis are left."""
        index_map = self._index_map(ids)
        return len(ids) if index_map is None else len(index_map.first)

    def _index_map(self, ids: NDArray[np.int64]) -> ClusterIndexMap | None:
        """Return the map of an axis; None when no channels merge. Axes with one array of ids share one map."""
        key = id(ids)
        if key not in self._known:
            target = np.where(ids < 0, -1, self._target[ids])
            stays = target == ids
            self._known[key] = None if stays.all() else _follow(ids, target, stays)
        return self._known[key]


def _first_channels(group: ChannelGroup, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for every channel, the smallest channel of its cluster."""
    if labels.shape != (group.width,):
        raise PruningError(f"clusters of {group.name!r} have shape {labels.shape} and must have ({group.width},)")
    numbers, first = np.unique(labels, return_index=True)
    if (numbers != np.arange(len(numbers))).any() or (np.diff(first) <= 0).any():
        raise PruningError(
            f"clusters of {group.name!r} must be numbered from 0 in the order of their smallest channels; "
            f"got {labels[:8].tolist()}..."
        )
    by_conv_group = labels.reshape(group.conv_groups, -1)
    counts = [len(np.unique(part)) for part in by_conv_group]
    if len(set(counts)) > 1 or sum(counts) != len(numbers):
        raise PruningError(
            f"clusters of {group.name!r} must lie within its {group.conv_groups} conv groups, equally many in each; "
            "cluster every conv group on its own"
        )
    return np.asarray(first[labels], dtype=np.int64)


def _follow(ids: NDArray[np.int64], target: NDArray[np.int64], stays: NDArray[np.bool_]) -> ClusterIndexMap:
    """Map the n-th occurrence of a channel to the n-th occurrence of the first channel of its cluster.

    A channel occurs several times on an axis where maps were flattened, or where a concatenation holds it twice.
    """
    order = np.argsort(ids, kind="stable")
    starts = np.r_[0, np.flatnonzero(np.diff(ids[order])) + 1]
    occurrence = np.empty(len(ids), dtype=np.int64)
    occurrence[order] = np.arange(len(ids)) - np.repeat(starts, np.diff(np.r_[starts, len(ids)]))
    key = target * (occurrence.max() + 1) + occurrence
    key[ids < 0] = -1 - np.arange(int((ids < 0).sum()))  # a key of its own: these indices are never merged
    first = np.flatnonzero(stays)
    by_key = np.argsort(key[first])
    return ClusterIndexMap.of(by_key[np.searchsorted(key[first], key, sorter=by_key)], first)
