"""Matrix rank of the feature maps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from pruning.base import Context, Criterion
from pruning.criteria.feature_maps import map_scores
from spaces.space import SearchSpace


@dataclass(frozen=True)
class FeatureRank(Criterion):
    """Keep the channels whose feature maps have the highest matrix rank. Lin et al., HRank, arXiv 2002.10565.

    See `map_scores` for where maps are observed. A channel without a map has rank 0 or 1. Ranks are mostly equal where
    no activation lies between.

    Attributes:
        images: number of images over which ranks are averaged. The paper takes 500 and finds that few do as well; each
            rank takes a singular value decomposition.
    """

    images: int = 64

    seeded: ClassVar[bool] = False

    @override
    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        return map_scores(net, space, context, ranks, self.images)


def ranks(maps: Tensor) -> Tensor:
    """Return the ranks of maps of shape (B, C, H, W), summed over the images, shape (C,)."""
    found: Tensor = torch.linalg.matrix_rank(maps)
    return found.sum(dim=0)
