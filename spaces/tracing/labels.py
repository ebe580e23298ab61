"""Channel labels: which indices of which axes are the same channel.

Every axis of every tensor gets fresh ids, one per index; `unite` records that two sequences of ids are the same
channels. The connected components of these records are the channels; channels that lie on the same axes, equally often,
form a group.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ids = NDArray[np.int64]


class ChannelLabels:
    """Hands out channel ids, and collects which ids are the same channel and which channels are fixed."""

    def __init__(self) -> None:
        self._count = 0
        self._left: list[Ids] = []
        self._right: list[Ids] = []
        self._fixed: list[tuple[Ids, str]] = []

    def fresh(self, length: int) -> Ids:
        """Return ids that no other axis has, shape (length,)."""
        self._count += length
        return np.arange(self._count - length, self._count, dtype=np.int64)

    def unite(self, left: Ids, right: Ids) -> None:
        """Record that the ids are the same channels, index by index; both have the same length."""
        if left is not right:
            self._left.append(left)
            self._right.append(right)

    def fix(self, ids: Ids, reason: str) -> None:
        """Record that these channels can never be cut."""
        self._fixed.append((ids, reason))

    def components(self) -> Ids:
        """Return the number of the channel of every id, shape (ids,)."""
        left = np.concatenate([np.zeros(0, np.int64), *self._left])
        right = np.concatenate([np.zeros(0, np.int64), *self._right])
        edges = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(self._count, self._count))
        return np.asarray(connected_components(edges, directed=False)[1], dtype=np.int64)

    def fixed_reasons(self, components: Ids) -> dict[int, str]:
        """Return channel -> the reason why it cannot be cut; the first recorded reason counts."""
        reasons: dict[int, str] = {}
        for ids, reason in self._fixed:
            for channel in np.unique(components[ids]).tolist():
                reasons.setdefault(channel, reason)
        return reasons


def signatures(axes: Sequence[Ids], channels: int) -> Ids:
    """Return one number per channel, shape (channels,), equal for channels that lie on the same axes equally often.

    Args:
        axes: the channel at every index of each axis.
        channels: number of channels.
    """
    # Each axis has a random 64-bit weight, so a sum over axes is a fingerprint of their multiset (sums may overflow).
    weights = np.random.default_rng(0).integers(1, 2**62, size=len(axes), dtype=np.int64).view(np.uint64)
    fingerprint = np.zeros(channels, dtype=np.uint64)
    for axis, weight in zip(axes, weights, strict=True):
        np.add.at(fingerprint, axis, weight)
    return fingerprint.view(np.int64)
