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
from pruning.rewriting.index_maps import Clusters, Merged, Partition
from pruning.rewriting.layers import fit_attributes
from pruning.selection import Selection
from spaces.space import SearchSpace

CACHED_ELEMENTS = 2**18  # 1 MiB of float32, about what a core's second-level cache holds


def slice_channels(model: nn.Module, space: SearchSpace, selection: Selection) -> nn.Module:
    """Return a new network that keeps only the selected channels; `model` is left untouched.

    Args:
        model: the dense network that `space` was traced from.
        selection: group name -> kept channel indices, ascending; a group that is not named keeps all.

    Raises:
        PruningError: a selection that is empty, out of range, not ascending, or unequal over the runs of a grouped
            convolution; tensors of other shapes than those traced.
    """
    return _rebuilt(model, space, _Cut(space, _kept_channels(space, selection)))


def merge_channels(model: nn.Module, space: SearchSpace, clusters: Clusters) -> nn.Module:
    """Return a new network in which every cluster of channels is one channel; `model` is left untouched.

    Filters, BatchNorm weights and statistics of a cluster are replaced by their mean, and layers that read the cluster
    sum the weights of its inputs (Ding et al., arXiv 1904.03837, who keep one member instead of the mean). Where the
    members are equal the output does not change, in evaluation mode or in training; layers that normalise over
    channels (LayerNorm, GroupNorm) are the exception unless all clusters that they see together are equally large.

    Args:
        model: the dense network that `space` was traced from.
        clusters: group name -> cluster of each channel; a group that is not named keeps all.

    Raises:
        PruningError: clusters that `Partition` refuses; tensors of other shapes than those traced.
    """
    return _rebuilt(model, space, _Merge(space, Partition(space, clusters)))


def _rebuilt(model: nn.Module, space: SearchSpace, narrowed: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """Return a copy of a network with every parameter and buffer replaced by what a function makes of it."""
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


def _kept_channels(space: SearchSpace, selection: Selection) -> NDArray[np.bool_]:
    """Return, for every channel id, whether it stays; the extra last entry answers for -1 (never cut)."""
    last = space.groups[-1]
    keep = np.ones(last.start + last.width + 1, dtype=bool)
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
                f"selection of {name!r} must keep equally many channels in each of its {group.conv_groups} runs"
            )
        mask = np.zeros(group.width, dtype=bool)
        mask[kept] = True
        keep[group.start : group.start + group.width] = mask
    return keep


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
class _Kept:
    """What stays of an axis: indices in units of `run` neighbours (more than one where a channel was flattened)."""

    index: Tensor
    run: int

    @classmethod
    def of(cls, kept: NDArray[np.int64], ids: NDArray[np.int64]) -> "_Kept":
        changes = np.flatnonzero(np.diff(ids[: len(ids)])) + 1 if ids[0] == ids[min(1, len(ids) - 1)] else [1]
        run = int(changes[0]) if len(changes) else 1
        if run > 1 and len(ids) % run == 0 and (ids.reshape(-1, run) == ids[::run, None]).all():
            return cls(torch.from_numpy(kept[::run] // run), run)
        return cls(torch.from_numpy(kept), 1)

    def select(self, tensor: Tensor, dim: int) -> Tensor:
        index = self.index.to(tensor.device)
        if self.run == 1:
            return tensor.index_select(dim, index)
        runs = tensor.reshape(*tensor.shape[:dim], -1, self.run, *tensor.shape[dim + 1 :])
        return runs.index_select(dim, index).flatten(dim, dim + 1)


def _select_both(weight: Tensor, rows: _Kept, columns: _Kept) -> Tensor:
    """Select along dimensions 0 and 1, a few rows at a time so that the intermediate copy stays in the cache."""
    step = max(1, CACHED_ELEMENTS // max(1, weight[0].numel()))
    chunks = rows.index.split(step) if rows.run == 1 else (rows.index,)
    narrow = [columns.select(_Kept(chunk, rows.run).select(weight, 0), 1) for chunk in chunks]
    return narrow[0] if len(narrow) == 1 else torch.cat(narrow)


class _Cut:
    """Cuts one tensor at a time, finding the kept indices of equal axes once."""

    def __init__(self, space: SearchSpace, keep: NDArray[np.bool_]) -> None:
        self._space = space
        self._keep = keep
        self._found: dict[int, _Kept | None] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        axes = self._space.axes.get(name, {})
        _check_shape(self._space, name, tensor)
        indices = {dim: index for dim, ids in axes.items() if (index := self._indices(ids)) is not None}
        if not indices:
            return tensor.clone()
        if name in self._space.grouped:
            return self._cut_grouped(name, tensor)
        if set(indices) == {0, 1}:
            return _select_both(tensor, indices[0], indices[1])
        for dim, kept in indices.items():
            tensor = kept.select(tensor, dim)
        return tensor

    def _indices(self, ids: NDArray[np.int64]) -> "_Kept | None":
        """Return the kept indices of an axis; None when all stay. Axes with one map share one array."""
        key = id(ids)
        if key not in self._found:
            kept = np.flatnonzero(self._keep[ids])
            self._found[key] = None if len(kept) == len(ids) else _Kept.of(kept, ids)
        return self._found[key]

    def _cut_grouped(self, name: str, weight: Tensor) -> Tensor:
        """Cut a grouped convolution's weight of shape (out, in / groups, ...): every run has its own input channels."""
        groups = self._space.grouped[name]
        axes = self._space.axes[name]
        every_row = np.full(weight.shape[0], -1, dtype=np.int64)
        every_column = np.full(weight.shape[1] * groups, -1, dtype=np.int64)
        rows = np.flatnonzero(self._keep[axes.get(0, every_row)])
        columns = np.flatnonzero(self._keep[axes.get(1, every_column)]).reshape(groups, -1) % weight.shape[1]
        kept = weight[torch.from_numpy(rows).to(weight.device)]
        kept = kept.reshape(groups, -1, *kept.shape[1:])
        index = torch.from_numpy(columns).to(weight.device).view(groups, 1, -1, *[1] * (weight.ndim - 2))
        index = index.expand(-1, kept.shape[1], -1, *kept.shape[3:])
        return kept.gather(2, index).flatten(0, 1).contiguous()


class _Merge:
    """Merges one tensor at a time, on the processor: sums there come out the same on every run."""

    def __init__(self, space: SearchSpace, partition: Partition) -> None:
        self._space = space
        self._partition = partition
        self._merged: dict[str, list[Merged]] = {}
        for each in partition.merged():
            self._merged.setdefault(each.tensor, []).append(each)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        _check_shape(self._space, name, tensor)
        narrow = tensor.cpu()
        for each in self._merged.get(name, ()):
            if not each.summed:
                narrow = each.segments.means(narrow, each.dim)
                continue
            runs = self._partition.runs(each)  # every run of rows has its own input channels
            rows = narrow.chunk(runs)
            narrow = torch.cat([each.segments.part(run, runs).sums(rows[run], each.dim) for run in range(runs)])
        return narrow.to(tensor.device) if narrow is not tensor else tensor.clone()
