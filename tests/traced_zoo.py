"""Spaces of networks of the zoo, traced once for all tests that only read them."""

from functools import cache

import torch

from spaces.space import ModelSpec, SearchSpace
from spaces.tracing.tracer import trace
from spaces.zoo.models import build


@cache
def zoo_space(name: str, side: int, classes: int = 10) -> SearchSpace:
    """Return the space of a network on square colour images of a side in pixels."""
    return trace(build(ModelSpec(name, classes, (3, side, side))), torch.empty(1, 3, side, side))
