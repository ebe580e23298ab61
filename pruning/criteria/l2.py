"""Filter L2 norm."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from pruning.base import Context
from pruning.criteria.weights import norm_scores
from spaces.space import SearchSpace


@dataclass(frozen=True)
class L2:
    """Keep the channels whose filters have the largest L2 norm."""

    seeded: ClassVar[bool] = False

    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        """Return the norms, relative to the mean of their layer and summed over coupled layers."""
        return norm_scores(net, space, order=2)
