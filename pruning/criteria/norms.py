"""Norms of filters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from pruning.base import Context, Criterion
from pruning.criteria.weights import norm_scores
from spaces.space import SearchSpace


@dataclass(frozen=True)
class L1(Criterion):
    """Keep the channels whose filters have the largest L1 norm. Li et al., Pruning Filters, arXiv 1608.08710.

    Norms are relative to the mean of their layer and summed over the layers that write the same channels.
    """

    seeded: ClassVar[bool] = False

    @override
    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        return norm_scores(net, space, order=1)


@dataclass(frozen=True)
class L2(Criterion):
    """Keep the channels whose filters have the largest L2 norm; relative and summed as for `L1`."""

    seeded: ClassVar[bool] = False

    @override
    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        return norm_scores(net, space, order=2)
