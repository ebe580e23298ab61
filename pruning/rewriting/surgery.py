"""Surgery: a narrow network from a wide one in one pass over its weights."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.base import PruningError
from pruning.rewriting.index_maps import Clusters, MergedDimension, NetworkClusters
from pruning.selection import Selection, kept_ids
from spaces.slicing.filters import as_filters, as_stored
from spaces.slicing.slicer import rebuilt, sliced
from spaces.space import SearchSpace


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
    _check_shapes(model, space)
    return sliced(model, space, kept_ids(space, selection))


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
    merger = _Merger(space, NetworkClusters(space, clusters))
    _check_shapes(model, space)
    return rebuilt(model, space, merger)


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


def _check_shapes(model: nn.Module, space: SearchSpace) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        groups, filters = space.grouped.get(name, 1), as_filters(space, name, tensor)
        for dim, ids in space.axes.get(name, {}).items():
            length = len(ids) // groups if dim == 1 else len(ids)
            if filters.shape[dim] != length:
                raise PruningError(
                    f"{name} has shape {tuple(filters.shape)}, but the space was traced with {length} at dimension "
                    f"{dim}; slice the network that was traced"
                )


class _Merger:
    """Merges one tensor at a time, on the CPU, where sums are the same every time."""

    def __init__(self, space: SearchSpace, clusters: NetworkClusters) -> None:
        self._space = space
        self._clusters = clusters
        self._merged: dict[str, list[MergedDimension]] = {}
        for merged in clusters.merged_dimensions():
            self._merged.setdefault(merged.tensor, []).append(merged)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._merged:
            return tensor.clone()
        filters = as_filters(self._space, name, tensor.cpu())
        for merged in self._merged[name]:
            filters = self._summed(merged, filters) if merged.summed else merged.index_map.means(filters, merged.dim)
        return as_stored(self._space, name, filters).to(tensor.device)

    def length(self, ids: NDArray[np.int64]) -> int:
        """Return how many indices of an axis are left."""
        return self._clusters.length(ids)

    def _summed(self, merged: MergedDimension, weight: Tensor) -> Tensor:
        """Sum the inputs of every cluster; each conv group of rows has input channels of its own."""
        conv_groups = self._clusters.conv_groups_of(merged)
        parts = weight.chunk(conv_groups)
        maps = [merged.index_map.of_conv_group(number, conv_groups) for number in range(conv_groups)]
        return torch.cat([part_map.sums(part, merged.dim) for part_map, part in zip(maps, parts, strict=True)])
