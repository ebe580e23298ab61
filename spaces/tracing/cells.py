"""Cells: channels that lie on the same axes and in the same parts of them, of which equally many are kept.

A grouped convolution, a norm over groups and a split into equal parts need as many channels in every part of an axis.
Channels that fill all parts alike are a group of their own; those that fill some parts only are one group together,
whose cells stay equally large, so that the parts stay equal whatever else is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

from spaces.tracing.labels import Ids


@dataclass(frozen=True)
class Cells:
    """The group and the cell of every channel.

    Attributes:
        group_of: number of the group of every channel, shape (channels,).
        cell_of: number of the kind of cell of every channel, shape (channels,); a kind may fill several cells.
    """

    group_of: Ids
    cell_of: Ids

    def members(self, group: int) -> Ids:
        """Return the channels of a group."""
        return np.flatnonzero(self.group_of == group).astype(np.int64)

    def cells_in(self, group: int) -> int:
        """Return into how many equally large cells a group is parted."""
        _, counts = np.unique(self.cell_of[self.members(group)], return_counts=True)
        return int(counts.sum()) // gcd(*counts.tolist())

    def ordered(self, group: int, channels: Ids) -> Ids:
        """Return the channels of a group among some, each once, as they come, those of one kind of cell together."""
        own = channels[self.group_of[channels] == group]
        own = own[np.sort(np.unique(own, return_index=True)[1])]
        _, first, kinds = np.unique(self.cell_of[own], return_index=True, return_inverse=True)
        return np.asarray(own[np.argsort(first[kinds], kind="stable")], dtype=np.int64)


def cells_of(signatures: Ids, parted: Sequence[Ids]) -> Cells:
    """Return the groups and cells of channels.

    Args:
        signatures: equal for channels that lie on the same axes equally often, shape (channels,).
        parted: channels along the axes that must keep equally many in every part, each of shape (parts, length).
    """
    group_of = np.unique(signatures, return_inverse=True)[1].astype(np.int64)
    cell_of = group_of
    for axis in parted:
        kinds = _kinds(axis, len(signatures))
        cell_of = np.unique(cell_of * (int(kinds.max()) + 1) + kinds, return_inverse=True)[1].astype(np.int64)
    joined = True
    while joined:
        joined = False
        for axis in parted:
            uneven = _uneven(group_of, axis)
            if len(uneven) > 1:
                group_of, joined = np.where(np.isin(group_of, uneven), uneven[0], group_of), True
    return Cells(group_of, cell_of)


def _kinds(axis: Ids, channels: int) -> Ids:
    """Return a number per channel, equal for channels that lie in the same parts of an axis equally often."""
    present, index = np.unique(axis, return_inverse=True)
    counts = np.zeros((len(present), len(axis)), dtype=np.int64)
    np.add.at(counts, (index.reshape(axis.shape), np.arange(len(axis))[:, None]), 1)
    kinds = np.zeros(channels, dtype=np.int64)
    kinds[present] = 1 + np.unique(counts, axis=0, return_inverse=True)[1].reshape(-1)
    return kinds


def _uneven(group_of: Ids, axis: Ids) -> Ids:
    """Return the groups that do not fill all parts of an axis alike; together they do, because the parts are equal."""
    numbers, index = np.unique(group_of[axis], return_inverse=True)
    counts = np.zeros((len(numbers), len(axis)), dtype=np.int64)
    np.add.at(counts, (index.reshape(axis.shape), np.arange(len(axis))[:, None]), 1)
    return np.asarray(numbers[(counts != counts[:, :1]).any(axis=1)], dtype=np.int64)
