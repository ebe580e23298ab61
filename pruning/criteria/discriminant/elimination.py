"""Order in which the channels of a group are removed, from the Discriminant Information that each removal loses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.criteria.discriminant.information import RidgeInformation

EXACT_UP_TO = 1024  # channels; of more channels than that, several are removed in one pass
REMOVED_AT_ONCE = 1 / 256  # share of the remaining channels removed in one pass


@dataclass(frozen=True)
class Ranking:
    """The order in which the channels of a group are removed, and the information that is lost.

    Attributes:
        ranks: step at which each channel is removed, shape (width,); the channel removed last has the highest rank.
        lost: information lost when w channels remain, w = 0..width, shape (width + 1,); lost[width] = 0.
    """

    ranks: Tensor
    lost: Tensor

    @classmethod
    def of_order(cls, order: Tensor, losses: Tensor) -> "Ranking":
        """Build from the channels in the order of their removal and the information that each removal loses."""
        ranks = torch.empty(len(order), dtype=torch.float64)
        ranks[order] = torch.arange(len(order), dtype=torch.float64)
        return cls(ranks, torch.cat([torch.zeros(1, dtype=torch.float64), losses.cumsum(0)]).flip(0))

    @classmethod
    def of_scores(cls, scores: Tensor) -> "Ranking":
        """Rank channels by scores that do not change as others are removed; the lowest score is removed first."""
        order = torch.argsort(scores, stable=True)
        return cls.of_order(order, scores[order])


def summed_over_sites(by_site: Sequence[tuple[Tensor, Tensor]], factor: Tensor) -> Tensor:
    """Add the values that sites give to channels of a group and multiply the sums by a factor. Shape (width,).

    Args:
        by_site: values of a site's features, and the channel of the group that each feature is.
        factor: shape (width,).
    """
    total = torch.zeros(len(factor), dtype=torch.float64)
    for values, channels in by_site:
        total.index_add_(0, channels, values)
    return total * factor


def eliminate(sites: list[tuple[RidgeInformation, Tensor]], factor: Tensor) -> Ranking:
    """Remove channels one by one, each time the channel whose drop, summed over all sites, is smallest.

    While more than `EXACT_UP_TO` channels remain, several are removed per pass over the matrices, one by one among
    the channels with the smallest drops, twice as many as are removed. As drops hardly ever fall when other channels
    are removed, the order is the same.

    Args:
        sites: information of each site, and the channel of the group that each of its features is.
        factor: multiplies the drops, shape (width,).
    """
    remaining = torch.arange(len(factor))
    orders: list[Tensor] = []
    losses: list[Tensor] = []
    while len(remaining):
        count = 1 if len(remaining) <= EXACT_UP_TO else max(1, int(REMOVED_AT_ONCE * len(remaining)))
        if count == 1:
            order, lost = _one_by_one(sites, factor, remaining, len(remaining))
        else:
            rising = torch.argsort(_drops(sites, factor)[remaining], stable=True)
            pool = remaining[rising[: 2 * count]].sort().values
            small = [(information.among(_features(channels, pool)), channels) for information, channels in sites]
            order, lost = _one_by_one(small, factor, pool, count)
            for information, channels in sites:
                information.remove_all(_features(channels, order))
        orders.append(order)
        losses.append(lost)
        remaining = remaining[~torch.isin(remaining, order)]
    return Ranking.of_order(torch.cat(orders), torch.cat(losses))


def _drops(sites: list[tuple[RidgeInformation, Tensor]], factor: Tensor) -> Tensor:
    return summed_over_sites([(information.drops(), channels) for information, channels in sites], factor)


def _features(channels: Tensor, wanted: Tensor) -> Tensor:
    """Return the features of a site that are the wanted channels of the group."""
    return torch.nonzero(torch.isin(channels, wanted)).flatten()


def _one_by_one(
    sites: list[tuple[RidgeInformation, Tensor]], factor: Tensor, candidates: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Remove `count` of the candidates; return them in the order of removal, and the information that each lost."""
    allowed = torch.zeros(len(factor), dtype=torch.bool)
    allowed[candidates] = True
    feature_of = [dict(zip(channels.tolist(), range(len(channels)), strict=True)) for _, channels in sites]
    order = torch.empty(count, dtype=torch.int64)
    losses = torch.empty(count, dtype=torch.float64)
    for step in range(count):
        drops = _drops(sites, factor)
        channel = int(drops.masked_fill(~allowed, torch.inf).argmin())
        order[step], losses[step] = channel, drops[channel]
        allowed[channel] = False
        for (information, _), features in zip(sites, feature_of, strict=True):
            if channel in features:
                information.remove(features[channel])
    return order, losses
