"""Centripetal SGD: the gradient rule that makes the filters of a cluster equal while the network trains.

Ding et al., arXiv 1904.03837. The optimiser is handed, for row j of cluster H,

    mean_H(gradient) + epsilon * (row_j - mean_H(row))

and adds weight decay, momentum and learning rate as usual. Means are taken over segments of rows, which costs no more
than reading the weights, instead of by the paper's matrix products over all rows.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.base import TrainingPlan
from pruning.methods.csgd.collapse import Pull
from pruning.rewriting.index_maps import ClusterIndexMap, MergedDimension, NetworkClusters
from spaces.space import SearchSpace

KERNEL, SCALE, BIAS = "kernel", "scale", "bias"


@dataclass(frozen=True)
class Clustered:
    """A tensor some rows of which are to become equal: along `dim`, in these segments."""

    name: str
    tensor: Tensor
    dim: int
    index_map: ClusterIndexMap
    kind: str


def clustered_tensors(net: nn.Module, space: SearchSpace, network_clusters: NetworkClusters) -> list[Clustered]:
    """List the parameters and buffers of a wide net that merging would average."""
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    kernels = {f"{layer}.weight" for group in space.groups for layer in group.producers}
    return [
        Clustered(each.tensor, tensors[each.tensor], each.dim, index_map, _kind(each.tensor, kernels))
        for each, index_map in _placed(network_clusters, tensors)
        if not each.summed
    ]


def deviations(clustered: list[Clustered]) -> Mapping[str, float]:
    """Return, by tensor, how far members of clusters are from their means, as a share of the largest value."""
    with torch.no_grad():
        return {each.name: each.index_map.deviation(each.tensor, each.dim) for each in clustered}


class CentripetalHook:
    """Replaces the gradients of a wide net's clustered tensors, as a `StepHook`.

    Args:
        clustered: of the net that is trained, on its device.
        pull: by the gradient, or directly. Directly, the deviations of parameters and running statistics shrink by one
            share a step and are gone after `pull.steps`; weight decay then acts on the means alone, so that the
            optimiser never moves a deviation.
        factors: kind of tensor -> its strength relative to epsilon.
        plan: of the training.
    """

    def __init__(
        self, clustered: list[Clustered], pull: Pull, factors: Mapping[str, float], plan: TrainingPlan
    ) -> None:
        self._pull = pull
        self._parameters = [each for each in clustered if isinstance(each.tensor, nn.Parameter)]
        self._buffers = [each for each in clustered if not isinstance(each.tensor, nn.Parameter)]
        self._strengths = [pull.epsilon * factors[each.kind] for each in self._parameters]
        self._decay = plan.weight_decay
        self._averages = {id(each.index_map): ClusterAverage(each.index_map, each.tensor.is_cuda) for each in clustered}

    @torch.no_grad()
    def __call__(self, net: nn.Module, step: int) -> None:
        """Change the gradients, and where the pull is direct the tensors, in place."""
        if self._pull.direct:
            self._pull_directly(1.0 if step + 1 >= self._pull.steps else self._pull.direct)
            return
        for each, strength in zip(self._parameters, self._strengths, strict=True):
            gradient = each.tensor.grad
            if gradient is not None:
                gradient.sub_(each.tensor, alpha=strength)
                mean = self._averages[id(each.index_map)](gradient, each.dim)
                gradient.copy_(mean.add_(each.tensor, alpha=strength))

    def _pull_directly(self, share: float) -> None:
        for each in [*self._parameters, *self._buffers]:
            average = self._averages[id(each.index_map)]
            each.tensor.lerp_(average(each.tensor, each.dim), share)
            if each.tensor.grad is not None:
                each.tensor.grad.copy_(average(each.tensor.grad, each.dim))
                if self._decay and share < 1 and each.tensor.ndim > 1:
                    apart = each.tensor - average(each.tensor, each.dim)
                    each.tensor.grad.sub_(apart, alpha=self._decay)


class RescalingHook:
    """Goes on with centripetal SGD on the merged net: the same trajectory at the narrow net's cost, as a `StepHook`.

    In the wide net the members of a cluster move by the mean of their gradients, and the merged filter's gradient is
    the sum, so it is divided by the size of the cluster; a reader's summed inputs each move by the same gradient, so
    theirs is multiplied by it. Where gradients are clipped before, the trajectories differ: the wide net's norm is
    another.
    """

    def __init__(self, narrow: nn.Module, network_clusters: NetworkClusters) -> None:
        tensors = dict(narrow.named_parameters())
        factors: dict[str, Tensor] = {}
        for each, index_map in _placed(network_clusters, tensors):
            factor = _factor(each, index_map, tensors[each.tensor], network_clusters.conv_groups_of(each))
            factors[each.tensor] = factors[each.tensor] * factor if each.tensor in factors else factor
        self._scaled = [(tensors[name], factor) for name, factor in factors.items()]

    @torch.no_grad()
    def __call__(self, net: nn.Module, step: int) -> None:
        """Scale the gradients in place."""
        for parameter, factor in self._scaled:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


class ClusterAverage:
    """Gives every member of a cluster the mean of its segment, bit-equal on every run.

    Args:
        segments: of the axis that is averaged over.
        by_matrix: by a product with a matrix of shape (narrow, wide) instead of by index: adding by index is in no
            fixed order on CUDA devices.
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
    """Yield what is merged of these tensors, with segments on their devices; equal ones stay one object."""
    placed: dict[int, ClusterIndexMap] = {}
    for each in network_clusters.merged_dimensions():
        if each.tensor in tensors:
            key = id(each.index_map)
            placed.setdefault(key, each.index_map.to(tensors[each.tensor].device))
            yield each, placed[key]


def _factor(merged: MergedDimension, index_map: ClusterIndexMap, narrow: Tensor, runs: int) -> Tensor:
    if not merged.summed:
        return index_map.along(1 / index_map.counts, narrow, merged.dim)
    if runs == 1:
        return index_map.along(index_map.counts, narrow, merged.dim)
    per_row = index_map.counts.reshape(runs, -1).repeat_interleave(len(narrow) // runs, dim=0)
    return per_row.to(narrow.dtype).reshape(*per_row.shape, *[1] * (narrow.ndim - 2))


def _kind(name: str, kernels: set[str]) -> str:
    if name in kernels:
        return KERNEL
    return BIAS if name.rpartition(".")[2] == "bias" else SCALE


def worst(deviation: Mapping[str, float]) -> tuple[float, str]:
    """Return the largest deviation and the tensor it was measured on; not a number counts as the largest."""
    return max(((math.inf if math.isnan(v) else v, name) for name, v in deviation.items()), default=(0.0, ""))
