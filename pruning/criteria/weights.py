"""Where a group's channels lie in the weights of a network."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from spaces.groups import ChannelGroup
from spaces.space import SearchSpace


def producer_filters(
    net: nn.Module, space: SearchSpace, group: ChannelGroup, first_only: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, per layer that writes channels of the group, those channels' filters and which channels they are.

    Depthwise layers count: they carry one filter per channel of the group. Yields (filters, channels): float64 of
    shape (n, weights of a filter), and indices into the group of shape (n,).

    Args:
        first_only: only of the layer that writes the group first.
    """
    first = f"{group.producers[0]}.weight" if group.producers else ""
    for name, weight in net.named_parameters():
        ids = space.axes.get(name, {}).get(0)
        if ids is None or weight.ndim < 2 or (first_only and name != first):
            continue
        channels = torch.as_tensor(ids, dtype=torch.int64) - group.start
        rows = torch.nonzero((channels >= 0) & (channels < group.width)).flatten()
        if len(rows):
            yield weight.detach()[rows.to(weight.device)].flatten(1).double().cpu(), channels[rows]


def norm_scores(net: nn.Module, space: SearchSpace, order: int, first_only: bool = False) -> dict[str, Tensor]:
    """Score every variable group by the norms of its filters.

    Where several layers write the same channels, each layer's norms are divided by their mean before they are
    added: otherwise the layer with the largest filters would decide alone. Groups without any filter score 0.

    Args:
        order: of the norm.
        first_only: of the layer alone that writes the group first.
    """
    scores = {}
    for group in space.variable:
        total = torch.zeros(group.width, dtype=torch.float64)
        for filters, channels in producer_filters(net, space, group, first_only):
            norms = torch.linalg.vector_norm(filters, ord=order, dim=1)
            total.index_add_(0, channels, norms / norms.mean().clamp_min(torch.finfo(torch.float64).tiny))
        scores[group.name] = total
    return scores
