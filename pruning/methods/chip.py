"""CHIP: channels whose feature maps the other maps of the layer do not replace. Sui et al., arXiv 2110.13981.

This file is the whole method, a criterion and a one-shot method that uses it; docs/methods.md takes it as its example.

Channel independence, the paper's definition: the maps of a layer for one image are the rows of a matrix A of shape
(channels, height * width), and CI of channel i = ||A||_* - ||A with row i set to zero||_*. The nuclear norm ||.||_* is
the sum of the singular values. CI is averaged over images, and the channels of the lowest CI are cut.

Differences from the paper: widths come from the search or the budgets, not from rates per layer; maps are observed
where the next convolutions read them, so after a residual addition; values of several layers that read a channel are
summed, each relative to its layer's mean; one cut, then fine-tuning.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from pruning.base import Context, Criterion
from pruning.criteria.feature_maps import map_scores
from pruning.methods.score_and_slice import ScoreAndSlice
from pruning.settings import setting
from spaces.space import SearchSpace

ELEMENTS_AT_ONCE = 2**22  # of Gram matrices, in float64


@dataclass(frozen=True)
class ChannelIndependence(Criterion):
    """Keep the channels of the highest channel independence, averaged over `images` calibration images."""

    images: int = 32

    seeded: ClassVar[bool] = False

    @override
    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        return map_scores(net, space, context, independence, self.images)


def independence(maps: Tensor) -> Tensor:
    """Return the channel independence of maps of shape (B, C, H, W), summed over the images, shape (C,).

    Singular values are roots of the eigenvalues of a Gram matrix of the smaller side, in float64: of the channels,
    where a channel's row and column are set to zero, or of the positions, from which the channel's share is subtracted.
    """
    total = torch.zeros(maps.shape[1], dtype=torch.float64)
    for matrix in maps.cpu().double().flatten(2):  # MPS has no float64
        channels, positions = matrix.shape
        side = min(channels, positions)
        gram = matrix @ matrix.T if channels <= positions else matrix.T @ matrix
        norms = []
        for rows in torch.arange(channels).split(max(1, ELEMENTS_AT_ONCE // side**2)):
            if channels <= positions:
                kept = torch.ones(len(rows), channels, dtype=gram.dtype)
                kept[torch.arange(len(rows)), rows] = 0
                without = gram * kept.unsqueeze(1) * kept.unsqueeze(2)
            else:
                without = gram - matrix[rows].unsqueeze(2) * matrix[rows].unsqueeze(1)
            norms.append(_nuclear(without))
        total += (_nuclear(gram) - torch.cat(norms)).clamp_min(0)  # under 0 by rounding only
    return total


def _nuclear(gram: Tensor) -> Tensor:
    """Return the nuclear norms of matrices with these Gram matrices, shape (..., n, n) -> (...)."""
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.clamp_min(0).sqrt().sum(-1)


@dataclass(frozen=True)
class Chip(ScoreAndSlice):
    """CHIP: channels whose feature maps depend least on the others'; the paper takes 640 images."""

    criterion: str = "channel_independence"
    images: int = setting(32, low=1, searched=False, help="calibration images")

    name: ClassVar[str] = "chip"
    paper: ClassVar[str] = "CHIP: Sui et al., Channel Independence-based Pruning, arXiv 2110.13981"
    needs: ClassVar[str] = "training images for feature maps; epochs afterwards are fine-tuning"

    @override
    def chosen(self) -> ChannelIndependence:
        return ChannelIndependence(self.images)
