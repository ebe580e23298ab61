"""The rows of a network's parameters that belong to a group's channels, and scores by a measure of the filters."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from spaces.groups import ChannelGroup
from spaces.slicing.filters import as_filters
from spaces.space import SearchSpace

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


class ChannelRows(NamedTuple):
    """Rows of a parameter that belong to a group, and the channel of the group of each row.

    Rows are indices of dimension 0 of what `as_filters` shows of the parameter.
    """

    group: ChannelGroup
    parameter: str
    rows: Tensor
    channels: Tensor


def channel_rows(net: nn.Module, space: SearchSpace) -> Iterator[ChannelRows]:
    """Yield the rows of every parameter that belong to each variable group."""
    for name, _ in net.named_parameters():
        axes = space.axes.get(name, {})
        for group in space.variable if 0 in axes else ():
            rows, channels = rows_of(group, axes[0])
            if len(rows):
                yield ChannelRows(group, name, rows, channels)


def norm_rows(net: nn.Module, space: SearchSpace) -> Iterator[ChannelRows]:
    """Yield the rows of `channel_rows` that are scales or shifts of normalisation layers."""
    for entry in channel_rows(net, space):
        if isinstance(net.get_submodule(entry.parameter.rpartition(".")[0]), NORMS):
            yield entry


def rows_of(group: ChannelGroup, ids: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return the indices of an axis that hold channels of the group, and the channel of the group at each of them.

    Args:
        ids: channel id of every index of the axis.
    """
    channels = torch.as_tensor(ids, dtype=torch.int64) - group.start
    rows = torch.nonzero((channels >= 0) & (channels < group.width)).flatten()
    return rows, channels[rows]


def producer_filters(
    net: nn.Module, space: SearchSpace, group: ChannelGroup, paced: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the filters of a group's channels and the channel of each filter, for every layer that writes the group.

    Depthwise layers are among them: they have one filter per channel of the group. Filters are float64 of shape
    (n, weights of a filter), channels are indices into the group of shape (n,).

    Args:
        paced: yield the filters of the group's `pacesetter` only.
    """
    leader = space.layers[pacesetter(space, group)].weight if paced and group.producers else ""
    for name, weight in net.named_parameters():
        ids = space.axes.get(name, {}).get(0)
        if ids is None or weight.ndim < 2 or (paced and name != leader):
            continue
        rows, channels = rows_of(group, ids)
        if len(rows):
            filters = as_filters(space, name, weight.detach())
            yield filters[rows.to(weight.device)].flatten(1).cpu().double(), channels


def pacesetter(space: SearchSpace, group: ChannelGroup) -> str:
    """Return the layer whose ranking or clusters the other writers of a group take over: ABFP's and C-SGD's pacesetter.

    It is the writer with the fewest layers between it and the image, and of several the first. In a residual stage that
    is the stem, or the projection of the first block: the path through the block is longer.

    Args:
        group: has at least one writer.
    """
    depths = _layer_depths(space)
    return min(group.producers, key=lambda layer: depths[layer])


def _layer_depths(space: SearchSpace) -> dict[str, int]:
    """Return for every layer that writes a group the smallest number of layers before it on a way from the image.

    Depthwise layers read the channels that they write, so they are last.
    """
    read: dict[str, list[ChannelGroup]] = {}
    for group in space.groups:
        for layer in group.consumers:
            read.setdefault(layer, []).append(group)
    writers = {layer for group in space.groups for layer in group.producers}
    depths = {layer: 0 for layer in writers if layer not in read and space.layers[layer].weight not in space.grouped}
    reached = set(depths)
    while reached:
        near = {layer for layer, groups in read.items() if any(reached.intersection(g.producers) for g in groups)}
        reached = near - depths.keys()
        depths |= dict.fromkeys(reached, 1 + max(depths.values()))
    return {layer: depths.get(layer, len(writers)) for layer in writers}


def filter_scores(
    net: nn.Module, space: SearchSpace, measure: Callable[[Tensor], Tensor], paced: bool = False
) -> dict[str, Tensor]:
    """Score every variable group by a measure of its filters.

    Where several layers write the same channels, each layer's values are divided by their mean before they are
    added: otherwise the layer with the largest filters would decide alone. Groups without any filter score 0.

    Args:
        measure: filters of shape (n, weights of a filter) -> values >= 0 of shape (n,).
        paced: measure the filters of each group's `pacesetter` only.
    """
    scores = {}
    for group in space.variable:
        scores[group.name] = torch.zeros(group.width, dtype=torch.float64)
        for filters, channels in producer_filters(net, space, group, paced):
            add_relative(scores[group.name], channels, measure(filters))
    return scores


def norm_scores(net: nn.Module, space: SearchSpace, order: int, paced: bool = False) -> dict[str, Tensor]:
    """Score every variable group by the norms of its filters; see `filter_scores`."""
    return filter_scores(net, space, lambda filters: torch.linalg.vector_norm(filters, ord=order, dim=1), paced)


def add_relative(total: Tensor, channels: Tensor, values: Tensor) -> None:
    """Add values >= 0, divided by their mean, to the totals of their channels in place; values that are all 0 add 0."""
    total.index_add_(0, channels, values / values.mean().clamp_min(torch.finfo(values.dtype).tiny))
