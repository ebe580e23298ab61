"""Where a group's channels lie in the weights of a network."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from spaces.groups import ChannelGroup
from spaces.space import SearchSpace

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
Entry = tuple[ChannelGroup, str, Tensor, Tensor]  # group, name of a parameter, its rows of that group, their channels


def entries(net: nn.Module, space: SearchSpace) -> Iterator[Entry]:
    """Yield where the channels of every variable group lie along the first dimension of every parameter."""
    for name, _ in net.named_parameters():
        axes = space.axes.get(name, {})
        for group in space.variable if 0 in axes else ():
            rows, channels = rows_of(group, axes[0])
            if len(rows):
                yield group, name, rows, channels


def norm_entries(net: nn.Module, space: SearchSpace) -> Iterator[Entry]:
    """Yield the entries that are scales or shifts of normalisation layers."""
    for entry in entries(net, space):
        if isinstance(net.get_submodule(entry[1].rpartition(".")[0]), NORMS):
            yield entry


def rows_of(group: ChannelGroup, ids: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return where an axis holds channels of the group, and which channels of the group they are."""
    channels = torch.as_tensor(ids, dtype=torch.int64) - group.start
    rows = torch.nonzero((channels >= 0) & (channels < group.width)).flatten()
    return rows, channels[rows]


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
        rows, channels = rows_of(group, ids)
        if len(rows):
            yield weight.detach()[rows.to(weight.device)].flatten(1).double().cpu(), channels


def filter_scores(
    net: nn.Module, space: SearchSpace, measure: Callable[[Tensor], Tensor], first_only: bool = False
) -> dict[str, Tensor]:
    """Score every variable group by a measure of its filters.

    Where several layers write the same channels, each layer's values are divided by their mean before they are
    added: otherwise the layer with the largest filters would decide alone. Groups without any filter score 0.

    Args:
        measure: filters of shape (n, weights of a filter) -> values >= 0 of shape (n,).
        first_only: only the layer that writes the group first counts.
    """
    scores = {}
    for group in space.variable:
        scores[group.name] = torch.zeros(group.width, dtype=torch.float64)
        for filters, channels in producer_filters(net, space, group, first_only):
            add_relative(scores[group.name], channels, measure(filters))
    return scores


def norm_scores(net: nn.Module, space: SearchSpace, order: int, first_only: bool = False) -> dict[str, Tensor]:
    """Score every variable group by the norms of its filters; see `filter_scores`."""
    return filter_scores(net, space, lambda filters: torch.linalg.vector_norm(filters, ord=order, dim=1), first_only)


def add_relative(total: Tensor, channels: Tensor, values: Tensor) -> None:
    """Add, in place, values >= 0 in units of their mean to the channels they belong to; all 0 where all are 0."""
    total.index_add_(0, channels, values / values.mean().clamp_min(torch.finfo(values.dtype).tiny))
