"""Precision: how many bits each filter's weights get, by the rank of the channel that the filter writes.

The abstract of Hou & Kung (arXiv 2005.13796) names mixed precision within a layer, by the rank of its channels; its
details are not known to us. The rule here is therefore ours: two bit widths, of which the better ranked filters of
every layer get the larger.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pruning.base import PruningError
from pruning.quantization.packing import WIDEST
from pruning.selection import Selection, kept_ids
from spaces.space import SearchSpace

NARROWEST = 2  # bits: codes -1, 0 and 1
UNRANKED = -1.0  # rank of a filter that writes no channel of a ranked group


@dataclass(frozen=True)
class Precision:
    """The bits of a weight: `low` or `high` for each filter, with a mean of `mean` over the ranked filters of a layer.

    Raises:
        PruningError: low and high are not within 2 to 16 or in the wrong order, or the mean is not between them.
    """

    mean: float
    low: int
    high: int

    def __post_init__(self) -> None:
        """Refuse bit widths that cannot be met."""
        if not NARROWEST <= self.low <= self.high <= WIDEST:
            raise PruningError(
                f"low_bits={self.low} and high_bits={self.high} must satisfy {NARROWEST} <= low <= high <= {WIDEST}"
            )
        if not self.low <= self.mean <= self.high:
            raise PruningError(
                f"bits={self.mean:g} is no mean of low_bits={self.low} and high_bits={self.high}; "
                "give a number between them, or 0 for float32"
            )

    def of_filters(self, ranks: Tensor) -> Tensor:
        """Return the bits of each filter of a layer: `high` for as many of the best as the mean allows, else `low`.

        The mean is never exceeded and is missed by less than (high - low) / filters. A filter without a rank gets
        `high` and is left out of the mean.

        Args:
            ranks: shape (filters,); higher is better, `UNRANKED` for no rank.

        Returns:
            Shape (filters,), uint8.

        Raises:
            PruningError: the layer has no filters.
        """
        if not len(ranks):
            raise PruningError("a layer without filters cannot be quantised; keep at least one channel")
        ranked = torch.nonzero(ranks > UNRANKED).flatten()
        share = (self.mean - self.low) / max(self.high - self.low, 1)
        count = math.floor(share * len(ranked) + 1e-9) if self.high > self.low else len(ranked)
        order = torch.argsort(ranks[ranked], descending=True, stable=True)
        bits = torch.full((len(ranks),), self.high, dtype=torch.uint8)
        bits[ranked[order[count:]]] = self.low
        return bits


def filter_ranks(
    net: nn.Module, space: SearchSpace, selection: Selection, ranks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the rank of each filter of every layer that can be quantised.

    Plain `Conv2d` and `Linear` layers can be, if neither the layer nor its weight occurs under a second name.

    Args:
        net: the narrow network.
        space: search space of the dense network.
        selection: the channels that the narrow network has kept.
        ranks: ranks of the dense channels, group name -> shape (group.width,), at least 0.

    Returns:
        Layer name -> shape (filters,), relative to the width of the group; `UNRANKED` where a filter writes no channel
        of a ranked group.
    """
    kept = kept_ids(space, selection)
    of_channel = np.full(len(kept), UNRANKED)
    for name, values in ranks.items():
        group = space.by_name[name]
        of_channel[group.start : group.start + group.width] = values.numpy() / group.width
    by_layer = {}
    for name, layer in _plain_layers(net).items():
        ids = space.axes.get(f"{name}.weight", {}).get(0)
        of_filter = np.full(len(layer.weight), UNRANKED) if ids is None else of_channel[ids[kept[ids]]]
        by_layer[name] = torch.from_numpy(of_filter)
    return by_layer


def _plain_layers(net: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    named = list(net.named_modules(remove_duplicate=False))
    uses = Counter(id(module) for _, module in named)
    uses.update(id(parameter) for _, parameter in net.named_parameters(remove_duplicate=False))
    return {
        name: module
        for name, module in named
        if type(module) in (nn.Conv2d, nn.Linear) and uses[id(module)] == 1 and uses[id(module.weight)] == 1
    }
