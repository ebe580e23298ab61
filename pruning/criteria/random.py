"""Random channels: the arm that every criterion has to beat."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pruning.base import Context
from spaces.space import SearchSpace


@dataclass(frozen=True)
class Random:
    """Score channels at random, determined by the context's seed."""

    seeded: ClassVar[bool] = True

    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        """Return uniform numbers in [0, 1)."""
        generator = torch.Generator().manual_seed(context.seed)
        return {group.name: torch.rand(group.width, generator=generator) for group in space.variable}
