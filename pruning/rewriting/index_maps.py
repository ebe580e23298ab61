"""Segments: which indices of an axis stand for one channel of the narrow network when channels are merged."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruning.base import PruningError
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace

# Group name -> the cluster of each of its channels, int64 of shape (group.width,). Clusters are numbered from 0 in the
# order of their smallest channels, which become the channels of the narrow net. A missing group keeps all channels.
Clusters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Segments:
    """Where the indices of one axis go.

    Attributes:
        index: index on the narrow axis, for each on the wide one; shape (wide,).
        first: the smallest wide index of each narrow one; shape (narrow,).
        counts: how many go to each narrow index; float64 of shape (narrow,).
    """

    index: Tensor
    first: Tensor
    counts: Tensor

    @classmethod
    def of(cls, index: NDArray[np.int64], first: NDArray[np.int64]) -> "Segments":
        """Build from arrays; `index` names each entry of `first` at least once."""
        counts = torch.from_numpy(np.bincount(index, minlength=len(first)).astype(np.float64))
        return cls(torch.from_numpy(index), torch.from_numpy(first), counts)

    def to(self, device: torch.device) -> "Segments":
        """Return the same on a device; counts become float32 where it has no float64."""
        counts = self.counts.float() if device.type == "mps" else self.counts
        return Segments(self.index.to(device), self.first.to(device), counts.to(device))

    def part(self, number: int, parts: int) -> "Segments":
        """Return one of equally long runs of the axis, none of whose segments leave it."""
        wide, narrow = len(self.index) // parts, len(self.first) // parts
        index = self.index[number * wide : (number + 1) * wide] - number * narrow
        first = self.first[number * narrow : (number + 1) * narrow] - number * wide
        return Segments(index, first, self.counts[number * narrow : (number + 1) * narrow])

    def along(self, values: Tensor, like: Tensor, dim: int) -> Tensor:
        """Shape one value per narrow index so that it multiplies a tensor along `dim`."""
        shape = [1] * like.ndim
        shape[dim] = -1
        return values.to(like.dtype).reshape(shape)

    def sums(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Return the sum of every segment along `dim`."""
        shape = (*tensor.shape[:dim], len(self.first), *tensor.shape[dim + 1 :])
        return tensor.new_zeros(shape).index_add_(dim, self.index, tensor)

    def means(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Return the mean of every segment along `dim`; exactly the members' value where they are equal."""
        first = tensor.index_select(dim, self.first)
        offsets = self.sums(tensor - self.spread(first, dim), dim)
        return first + offsets / self.along(self.counts, tensor, dim)

    def spread(self, narrow: Tensor, dim: int = 0) -> Tensor:
        """Return the wide tensor in which every member has its segment's value."""
        return narrow.index_select(dim, self.index)

    def deviation(self, tensor: Tensor, dim: int = 0) -> float:
        """Return max |x - mean of its segment| / max |x|; 0 for a tensor of zeros."""
        largest = float(tensor.abs().max())
        apart = float((tensor - self.spread(self.means(tensor, dim), dim)).abs().max())
        return apart / largest if largest else 0.0


@dataclass(frozen=True)
class Merged:
    """One dimension of one tensor that merging narrows: equal members are averaged, a reader's inputs are summed."""

    tensor: str
    dim: int
    segments: Segments
    summed: bool


class Partition:
    """The clusters of a network's channels, followed to every axis that holds them.

    Raises:
        PruningError: clusters of an unknown or fixed group, of a wrong shape, not numbered as `Clusters` says, or
            unequal over the runs of a grouped convolution.
    """

    def __init__(self, space: SearchSpace, clusters: Clusters) -> None:
        self._space = space
        last = space.groups[-1]
        self._target = np.arange(last.start + last.width)  # channel id -> id of the channel that stands for it
        for name, labels in clusters.items():
            if name not in space.by_name or space.by_name[name].fixed:
                known = ", ".join(group.name for group in space.variable)
                raise PruningError(f"{name!r} is no variable group of this network; known: {known}")
            group = space.by_name[name]
            first = _representatives(group, labels.detach().cpu().numpy())
            self._target[group.start : group.start + group.width] = group.start + first
        self._readers = {f"{layer}.weight" for group in space.groups for layer in group.consumers}
        self._found: dict[int, Segments | None] = {}

    def merged(self) -> Iterator[Merged]:
        """Yield every dimension of every tensor on which several indices become one."""
        for name, dims in self._space.axes.items():
            for dim, ids in dims.items():
                segments = self._segments(ids)
                if segments is not None:
                    yield Merged(name, dim, segments, summed=dim == 1 and name in self._readers)

    def runs(self, merged: Merged) -> int:
        """Return into how many runs a grouped convolution splits the inputs it reads; 1 elsewhere."""
        return self._space.grouped.get(merged.tensor, 1) if merged.summed else 1

    def _segments(self, ids: NDArray[np.int64]) -> Segments | None:
        """Return where the indices of an axis go; None when each stays alone. Axes with one map share one object."""
        key = id(ids)
        if key not in self._found:
            target = np.where(ids < 0, -1, self._target[ids])
            stays = target == ids
            self._found[key] = None if stays.all() else _follow(ids, target, stays)
        return self._found[key]


def _representatives(group: ChannelGroup, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the smallest channel of every channel's cluster."""
    if labels.shape != (group.width,):
        raise PruningError(f"clusters of {group.name!r} have shape {labels.shape} and must have ({group.width},)")
    numbers, first = np.unique(labels, return_index=True)
    if (numbers != np.arange(len(numbers))).any() or (np.diff(first) <= 0).any():
        raise PruningError(
            f"clusters of {group.name!r} must be numbered from 0 in the order of their smallest channels; "
            f"got {labels[:8].tolist()}..."
        )
    runs = labels.reshape(group.conv_groups, -1)
    sizes = {len(np.unique(run)) for run in runs}
    if len(sizes) > 1 or sum(len(np.unique(run)) for run in runs) != len(numbers):
        raise PruningError(
            f"clusters of {group.name!r} must lie within its {group.conv_groups} runs, equally many in each; "
            "cluster every run on its own"
        )
    return np.asarray(first[labels], dtype=np.int64)


def _follow(ids: NDArray[np.int64], target: NDArray[np.int64], stays: NDArray[np.bool_]) -> Segments:
    """Send the n-th occurrence of a channel to the n-th occurrence of the one that stands for it.

    A channel occurs often on an axis where maps were flattened, or where a concatenation holds it twice.
    """
    order = np.argsort(ids, kind="stable")
    starts = np.r_[0, np.flatnonzero(np.diff(ids[order])) + 1]
    occurrence = np.empty(len(ids), dtype=np.int64)
    occurrence[order] = np.arange(len(ids)) - np.repeat(starts, np.diff(np.r_[starts, len(ids)]))
    key = target * (occurrence.max() + 1) + occurrence
    key[ids < 0] = -1 - np.arange(int((ids < 0).sum()))  # never merged, each stays alone
    first = np.flatnonzero(stays)
    by_key = np.argsort(key[first])
    return Segments.of(by_key[np.searchsorted(key[first], key, sorter=by_key)], first)
