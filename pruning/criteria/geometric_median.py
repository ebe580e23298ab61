"""Filters that others can stand in for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pruning.base import Context
from pruning.criteria.weights import filter_scores
from spaces.space import SearchSpace


@dataclass(frozen=True)
class GeometricMedian:
    """Cut the channels whose filters are nearest to the geometric median. He et al., FPGM, arXiv 1811.00250.

    A filter's score is the sum of its Euclidean distances to all filters of its layer: the median minimises it.
    """

    seeded: ClassVar[bool] = False

    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        """Return the sums of distances, relative to the mean of their layer and summed over coupled layers."""
        return filter_scores(net, space, distances)


def distances(filters: Tensor) -> Tensor:
    """Return every filter's sum of distances to all the others. (n, weights) -> (n,)."""
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
