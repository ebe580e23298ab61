"""Distances of filters to the other filters of their layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from pruning.base import Context, Criterion
from pruning.criteria.weights import filter_scores
from spaces.space import SearchSpace


@dataclass(frozen=True)
class GeometricMedian(Criterion):
    """Remove the channels whose filters are nearest to the geometric median. He et al., FPGM, arXiv 1811.00250.

    A filter's score is the sum of its Euclidean distances to all filters of its layer, which the median minimises.
    Sums are relative to the mean of their layer and summed over the layers that write the same channels.
    """

    seeded: ClassVar[bool] = False

    @override
    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        return filter_scores(net, space, distances)


def distances(filters: Tensor) -> Tensor:
    """Return every filter's sum of distances to all other filters. (n, weights) -> (n,)."""
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
