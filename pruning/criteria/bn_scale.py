"""Scales of normalisation layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pruning.base import Context
from pruning.criteria.weights import add_relative, norm_entries, norm_scores
from spaces.space import SearchSpace


@dataclass(frozen=True)
class BatchNormScale:
    """Keep the channels with the largest BatchNorm scales. Liu et al., Network Slimming, arXiv 1708.06519.

    The scales are taken as they are: the paper first trains with an L1 penalty on them, and compares them over all
    layers. Groups that pass no normalisation layer with a scale are ranked by the L1 norms of their filters.
    """

    seeded: ClassVar[bool] = False

    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        """Return the absolute scales, relative to the mean of their layer and summed over all layers that scale."""
        scores = dict(norm_scores(net, space, order=1))
        scaled: set[str] = set()
        for group, name, rows, channels in norm_entries(net, space):
            if not name.endswith("weight"):
                continue
            if group.name not in scaled:
                scores[group.name] = torch.zeros(group.width, dtype=torch.float64)
                scaled.add(group.name)
            values = net.get_parameter(name).detach().double().cpu()[rows].abs()
            add_relative(scores[group.name], channels, values)
        return scores
