"""Scales of normalisation layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from pruning.base import Context, Criterion
from pruning.criteria.weights import add_relative, norm_rows, norm_scores
from spaces.space import SearchSpace


@dataclass(frozen=True)
class BatchNormScale(Criterion):
    """Keep the channels with the largest BatchNorm scales. Liu et al., Network Slimming, arXiv 1708.06519.

    A score is the absolute scale relative to the mean of its layer, summed over all layers that scale the channel. The
    scales are taken as they are; the paper first trains with an L1 penalty on them, and compares them over all layers.
    Groups that pass no normalisation layer with a scale are scored by the L1 norms of their filters.
    """

    seeded: ClassVar[bool] = False

    @override
    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        scores = dict(norm_scores(net, space, order=1))
        scaled: set[str] = set()
        for group, name, rows, channels in norm_rows(net, space):
            if not name.endswith("weight"):
                continue
            if group.name not in scaled:
                scores[group.name] = torch.zeros(group.width, dtype=torch.float64)
                scaled.add(group.name)
            values = net.get_parameter(name).detach().cpu().double()[rows].abs()
            add_relative(scores[group.name], channels, values)
        return scores
