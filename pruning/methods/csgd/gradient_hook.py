"""Centripetal SGD: the gradient rule that makes the filters of a cluster equal while the network trains.

Ding et al., arXiv 1904.03837. For row j of cluster H, the optimiser gets the gradient

    mean_H(gradient) + epsilon * (row_j - mean_H(row))

and applies weight decay, momentum and learning rate as usual. Means are taken over the rows of each cluster, which
costs no more than reading the weights, instead of by the paper's matrix products over all rows.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.base import TrainingPlan
from pruning.methods.csgd.collapse import CollapsePlan
from pruning.rewriting.index_maps import ClusterIndexMap, MergedDimension, NetworkClusters
from spaces.slicing.filters import as_filters, as_stored
from spaces.space import SearchSpace

KERNEL, SCALE, BIAS = "kernel", "scale", "bias"


@dataclass(frozen=True)
class ClusteredTensor:
    """A tensor of which some rows along `dim` are to become equal.

    Attributes:
        name: of the parameter or buffer.
        tensor: the parameter or buffer itself.
        dim: of its filters, as `as_filters` shows them.
        index_map: clusters of the rows.
        kind: KERNEL, SCALE or BIAS.
        space: of the network.
    """

    name: str
    tensor: Tensor
    dim: int
    index_map: ClusterIndexMap
    kind: str
    space: SearchSpace

    @property
    def values(self) -> Tensor:
        """The filters, a view into the tensor."""
        return as_filters(self.space, self.name, self.tensor)

    @property
    def gradient(self) -> Tensor | None:
        """The gradients of the filters, a view into that of the tensor; None without one."""
        return None if self.tensor.grad is None else as_filters(self.space, self.name, self.tensor.grad)


def clustered_tensors(net: nn.Module, space: SearchSpace, network_clusters: NetworkClusters) -> list[ClusteredTensor]:
    """Return the parameters and buffers of a wide net that merging averages."""
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    kernels = {space.layers[layer].weight for group in space.groups for layer in group.producers}
    return [
        ClusteredTensor(
            merged.tensor, tensors[merged.tensor], merged.dim, index_map, _kind(merged.tensor, kernels), space
        )
        for merged, index_map in _placed(network_clusters, tensors)
        if not merged.summed
    ]


def deviations(clustered: list[ClusteredTensor]) -> Mapping[str, float]:
    """Return tensor name -> largest deviation of a row from its cluster mean, as a share of the largest value."""
    with torch.no_grad():
        return {rows.name: rows.index_map.deviation(rows.values, rows.dim) for rows in clustered}


class CentripetalHook:
    """A `StepHook` that replaces the gradients of a wide net's clustered tensors.

    Args:
        clustered: tensors of the net that is trained, on its device.
        collapse: with a direct share, the deviations of parameters and running statistics shrink by that share in
            every step and are gone after its steps; weight decay then acts on the means alone, so that the optimiser
            changes no deviation.
        factors: kind of tensor -> its strength relative to epsilon.
        plan: of the training.
    """

    def __init__(
        self, clustered: list[ClusteredTensor], collapse: CollapsePlan, factors: Mapping[str, float], plan: TrainingPlan
    ) -> None:
        self._collapse = collapse
        self._parameters = [rows for rows in clustered if isinstance(rows.tensor, nn.Parameter)]
        self._buffers = [rows for rows in clustered if not isinstance(rows.tensor, nn.Parameter)]
        self._strengths = [collapse.epsilon * factors[rows.kind] for rows in self._parameters]
        self._decay = plan.weight_decay
        self._averages = {id(rows.index_map): ClusterAverage(rows.index_map, rows.tensor.is_cuda) for rows in clustered}

    @torch.no_grad()
    def __call__(self, _net: nn.Module, step: int) -> None:
        """Change the gradients in place; with a direct share, change the tensors too."""
        if self._collapse.direct_share:
            self._shrink_deviations(1.0 if step + 1 >= self._collapse.steps else self._collapse.direct_share)
            return
        for rows, strength in zip(self._parameters, self._strengths, strict=True):
            gradient = rows.gradient
            if gradient is not None:
                gradient.sub_(rows.values, alpha=strength)
                mean = self._averages[id(rows.index_map)](gradient, rows.dim)
                gradient.copy_(mean.add_(rows.values, alpha=strength))

    def _shrink_deviations(self, share: float) -> None:
        for rows in [*self._parameters, *self._buffers]:
            average = self._averages[id(rows.index_map)]
            values, gradient = rows.values, rows.gradient
            values.lerp_(average(values, rows.dim), share)
            if gradient is not None:
                gradient.copy_(average(gradient, rows.dim))
                if self._decay and share < 1 and values.ndim > 1:
                    gradient.sub_(values - average(values, rows.dim), alpha=self._decay)


class RescalingHook:
    """A `StepHook` that continues centripetal SGD on the merged net: same trajectory, at the narrow net's cost.

    In the wide net, the members of a cluster move by the mean of their gradients. The merged filter's gradient is their
    sum, so it is divided by the size of the cluster. The inputs that a consumer sums all move by the same gradient, so
    the gradient of their sum is multiplied by the size. If gradients are clipped, the trajectories differ, because the
    norm of the wide net's gradient differs.
    """

    def __init__(self, narrow: nn.Module, space: SearchSpace, network_clusters: NetworkClusters) -> None:
        tensors = dict(narrow.named_parameters())
        factors: dict[str, Tensor] = {}
        for merged, index_map in _placed(network_clusters, tensors):
            name, conv_groups = merged.tensor, network_clusters.conv_groups_of(merged)
            factor = _factor(merged, index_map, as_filters(space, name, tensors[name]), conv_groups)
            factors[name] = factors[name] * factor if name in factors else factor
        self._scaled = [(tensors[name], as_stored(space, name, factor)) for name, factor in factors.items()]

    @torch.no_grad()
    def __call__(self, _net: nn.Module, _step: int) -> None:
        """Scale the gradients in place."""
        for parameter, factor in self._scaled:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


class ClusterAverage:
    """Replaces every member of a cluster by the cluster mean, bit-equal on every run.

    Args:
        index_map: of the axis that is averaged over.
        by_matrix: multiply by a matrix of shape (narrow, wide) instead of adding by index, which has no fixed order on
            CUDA devices.
    """

    def __init__(self, index_map: ClusterIndexMap, by_matrix: bool) -> None:
        self._index_map = index_map
        self._matrix: Tensor | None = None
        if by_matrix:
            members = functional.one_hot(index_map.index, len(index_map.first)).T
            self._matrix = members / index_map.counts[:, None]

    def __call__(self, tensor: Tensor, dim: int) -> Tensor:
        """Return the tensor of the same shape whose rows along `dim` are the means."""
        index_map = self._index_map
        if self._matrix is None:
            means = index_map.sums(tensor, dim).div_(index_map.along(index_map.counts, tensor, dim))
        else:
            self._matrix = self._matrix.to(tensor.dtype)
            means = torch.tensordot(self._matrix, tensor, ([1], [dim])).movedim(0, dim)
        return index_map.expand(means, dim)


def _placed(
    network_clusters: NetworkClusters, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[MergedDimension, ClusterIndexMap]]:
    """Yield the merged dimensions of these tensors and their index maps on the tensors' devices.

    Dimensions that shared an index map still share one.
    """
    placed: dict[int, ClusterIndexMap] = {}
    for merged in network_clusters.merged_dimensions():
        if merged.tensor in tensors:
            key = id(merged.index_map)
            placed.setdefault(key, merged.index_map.to(tensors[merged.tensor].device))
            yield merged, placed[key]


def _factor(merged: MergedDimension, index_map: ClusterIndexMap, narrow: Tensor, conv_groups: int) -> Tensor:
    """Return the factor of the gradient of a merged dimension, in a shape that broadcasts over the narrow tensor."""
    if not merged.summed:
        return index_map.along(1 / index_map.counts, narrow, merged.dim)
    if conv_groups == 1:
        return index_map.along(index_map.counts, narrow, merged.dim)
    per_row = index_map.counts.reshape(conv_groups, -1).repeat_interleave(len(narrow) // conv_groups, dim=0)
    return per_row.to(narrow.dtype).reshape(*per_row.shape, *[1] * (narrow.ndim - 2))


def _kind(name: str, kernels: set[str]) -> str:
    if name in kernels:
        return KERNEL
    return BIAS if name.rpartition(".")[2] == "bias" else SCALE


def worst(deviation: Mapping[str, float]) -> tuple[float, str]:
    """Return the largest deviation and the name of its tensor; NaN counts as infinity."""
    return max(((math.inf if math.isnan(v) else v, name) for name, v in deviation.items()), default=(0.0, ""))
