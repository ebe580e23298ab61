"""Cutting a network several times: the widths after every cut, and the space after a cut without another trace."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pruning.selection import Selection
from spaces.errors import SpaceError
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace
from spaces.widths import Widths

Ids = NDArray[np.int64]


def narrow_space(space: SearchSpace, selection: Selection) -> SearchSpace:
    """Return the space of the network that `slice_channels` makes by `selection`.

    Groups keep their names, divisors and floors; their width and ceiling become the number of kept channels. The
    cost model is the dense one: it is exact at these widths too.

    Args:
        space: search space of the network before the cut.
        selection: group name -> kept channel indices, ascending; a group that is not named keeps all.
    """
    last = space.groups[-1]
    renumbered = np.full(last.start + last.width + 1, -1, dtype=np.int64)  # the last entry is for id -1
    groups: list[ChannelGroup] = []
    start = 0
    for group in space.groups:
        kept = np.arange(group.width) if group.name not in selection else selection[group.name].cpu().numpy()
        width = len(kept)
        renumbered[group.start + kept] = np.arange(start, start + width)
        floor, ceiling = min(group.floor, width), min(group.ceiling, width)
        groups.append(dataclasses.replace(group, width=width, start=start, floor=floor, ceiling=ceiling))
        start += width
    shared: dict[int, Ids] = {}  # axes still share arrays: surgery computes indices once per array

    def cut(ids: Ids) -> Ids:
        if id(ids) not in shared:
            shared[id(ids)] = renumbered[ids][(renumbered[ids] >= 0) | (ids < 0)]
        return shared[id(ids)]

    axes = {name: {dim: cut(ids) for dim, ids in dims.items()} for name, dims in space.axes.items()}
    sizes = {name: cut(ids) for name, ids in space.sizes.items()}
    return dataclasses.replace(space, groups=tuple(groups), axes=axes, sizes=sizes)


def space_of(space: SearchSpace, widths: Widths) -> SearchSpace:
    """Return the space of a narrow network, of which only the widths are known and not the channels it was cut by.

    Raises:
        SpaceError: some layer has the channels of a group in another order, so that the space depends on which
            channels were cut.
    """
    kept = {group.name: _first_channels(group, widths[group.name]) for group in space.variable}
    narrowed = [group for group in space.variable if widths[group.name] < group.width]
    for name, ids in _axis_ids(space):
        for group in narrowed:
            own = ids[(ids >= group.start) & (ids < group.start + group.width)]
            if not _same_for_all_cuts(own - group.start, group):
                raise SpaceError(
                    f"layer {name!r} has the channels of {group.name} in another order, so a network cut from this "
                    "one cannot be cut again; cut it from the dense network"
                )
    return narrow_space(space, kept)


def _first_channels(group: ChannelGroup, width: int) -> torch.Tensor:
    """Return the first channels of every conv group of a group, `width` of them together."""
    starts = torch.arange(group.conv_groups).unsqueeze(1) * (group.width // group.conv_groups)
    return (starts + torch.arange(width // group.conv_groups)).flatten()


def _same_for_all_cuts(channels: Ids, group: ChannelGroup) -> bool:
    """Return whether an axis looks the same after every cut to one width, whichever channels are kept.

    It does where it consists of whole conv groups in ascending order, one after another, each of their channels equally
    often.

    Args:
        channels: channel of the group at every index of the axis that holds one.
    """
    block = group.width // group.conv_groups
    for piece in np.split(channels, np.flatnonzero(np.diff(channels) < 0) + 1):
        present, counts = np.unique(piece, return_counts=True)
        by_block = np.bincount(present // block, minlength=group.conv_groups)
        if len(set(counts.tolist())) > 1 or not np.isin(by_block, (0, block)).all():
            return False
    return True


def _axis_ids(space: SearchSpace) -> Iterator[tuple[str, Ids]]:
    """Yield (layer, ids) of every axis, arrays that several axes share once."""
    seen: set[int] = set()
    for name, dims in space.axes.items():
        for ids in dims.values():
            if id(ids) not in seen:
                seen.add(id(ids))
                yield name, ids


def stages(space: SearchSpace, widths: Widths, cuts: int) -> list[Widths]:
    """Return the widths after each of several cuts, by which every group shrinks by about the same factor.

    Widths are rounded up to the group's divisor.

    Args:
        widths: width of every variable group after the last cut.
        cuts: number of cuts.
    """
    after_cuts = []
    for number in range(1, cuts + 1):
        rounded = {}
        for group in space.variable:
            between = group.width * (widths[group.name] / group.width) ** (number / cuts)
            legal = math.ceil(between / group.divisor - 1e-9) * group.divisor
            rounded[group.name] = max(widths[group.name], min(legal, group.ceiling))
        after_cuts.append(Widths(rounded) if number < cuts else widths)
    return after_cuts
