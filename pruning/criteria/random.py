"""Random scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from pruning.base import Context, Criterion
from spaces.space import SearchSpace


@dataclass(frozen=True)
class Random(Criterion):
    """Score channels by uniform numbers in [0, 1) drawn from the context's seed: the baseline of all criteria."""

    seeded: ClassVar[bool] = True

    @override
    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        generator = torch.Generator().manual_seed(context.seed)
        return {group.name: torch.rand(group.width, generator=generator) for group in space.variable}
