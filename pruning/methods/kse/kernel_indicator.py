"""The KSE indicator: how much each input channel of a convolution matters, by the 2-D kernels that read it.

Li et al., CVPR 2019, arXiv 1812.04368. A channel's sparsity is the L1 mass of its kernels, and its entropy measures how
evenly the kernels are spread. Both give the indicator, in [0, 1], and the indicator gives the level of the channel: how
many distinct kernels it keeps.

Differences from the authors' code: the entropy is over the kernels of one input channel, as the paper defines it, where
the code reshapes a tensor that it should transpose; the indicator is normalised once, and a second time only on
request; layers with few kernels, equal kernels, zero kernels or one channel get a defined value instead of NaN.
"""

from dataclasses import dataclass
from math import log2

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pruning.base import PruningError

CHUNK_BYTES = 2**28  # of pairwise distances that are held at a time
NO_RANGE = 1e-12  # share of the largest value: smaller differences are rounding errors


@dataclass(frozen=True)
class LevelRule:
    """How an indicator becomes a level, and a level a number of distinct kernels.

    A channel of level 0 keeps no kernels. Level `count` keeps all N of them, and level g in between keeps
    ceil(N / 2^(count - g + shift)).

    Attributes:
        count: the highest level (G of the paper), at least 1.
        shift: T of the paper, at least 0.
    """

    count: int
    shift: int

    def level_of(self, indicator: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the level of each indicator."""
        scaled = np.clip(indicator, 0.0, 1.0) * self.count
        return np.where(np.floor(scaled) == 0, 0, np.ceil(scaled)).astype(np.int64)

    @property
    def lowest(self) -> int:
        """The lowest level above 0 that belongs to a whole interval of the indicator, not to a single value."""
        return min(2, self.count)

    def start(self, level: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the indicator above which a channel gets this level."""
        return (level - 1) / self.count

    def kernels(self, level: NDArray[np.int64], kernels: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Return how many of its `kernels` kernels a channel keeps at each level."""
        divisor = np.int64(1) << np.maximum(self.count - level + self.shift, 0)
        some = -(-np.asarray(kernels, dtype=np.int64) // divisor)
        return np.where(level <= 0, 0, np.where(level >= self.count, kernels, some)).astype(np.int64)


def channel_kernels(weight: Tensor, groups: int = 1) -> Tensor:
    """Return the kernels that read each input channel of a convolution, shape (channels, kernels, kh * kw).

    Args:
        weight: shape (out, in / groups, kh, kw).
    """
    by_group = weight.detach().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return by_group.transpose(1, 2).flatten(0, 1)


def sparsity(kernels: Tensor) -> Tensor:
    """Return the L1 mass of each channel's kernels, shape (channels,).

    Args:
        kernels: shape (channels, kernels, D).
    """
    return kernels.cpu().double().abs().sum((1, 2))  # MPS has no float64


def entropy(kernels: Tensor, neighbours: int = 5) -> Tensor:
    """Return how evenly each channel's kernels are spread, in [0, log2 kernels], shape (channels,).

    A kernel's density is the sum of its distances to its `neighbours` nearest other kernels (to all others where there
    are fewer). The entropy is that of the kernels' shares of the summed densities. It is log2 kernels where all kernels
    of a channel are equal, and 0 where there is one kernel.

    Args:
        kernels: shape (channels, kernels, D).
    """
    count = kernels.shape[1]
    nearest = min(neighbours, count - 1)
    if nearest < 1:
        return torch.zeros(len(kernels), dtype=torch.float64)
    points = kernels.cpu().double()
    distances = _line_distances(points[..., 0], nearest) if points.shape[2] == 1 else _distances(points, nearest)
    total = distances.sum(1, keepdim=True)
    shares = distances / torch.where(total > 0, total, 1.0)
    found = torch.special.entr(shares).sum(1) / np.log(2)  # entr(0) = 0
    return torch.where(total[:, 0] > 0, found, log2(count)).clamp(0.0, log2(count))


def _distances(points: Tensor, nearest: int) -> Tensor:
    """Return the sum of exact distances to the nearest other points, shape (channels, kernels).

    Args:
        points: shape (channels, kernels, D).
    """
    channels, count, _ = points.shape
    sums = []
    for chunk in points.split(max(1, CHUNK_BYTES // (8 * count * count))):
        pairs = torch.cdist(chunk, chunk, compute_mode="donot_use_mm_for_euclid_dist")
        pairs.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        sums.append(pairs.topk(nearest, dim=2, largest=False).values.sum(2))
    return torch.cat(sums) if sums else points.new_zeros(channels, count)


def _line_distances(points: Tensor, nearest: int) -> Tensor:
    """Return the same sums as `_distances` for points on a line.

    The nearest neighbours of a point are next to it in sorted order, so their sum is the smallest one over all windows
    of `nearest` points around it.

    Args:
        points: shape (channels, kernels).
    """
    ordered, order = points.sort(dim=1)
    left, right = [torch.zeros_like(ordered)], [torch.zeros_like(ordered)]
    for step in range(1, nearest + 1):
        gap = ordered[:, step:] - ordered[:, :-step]
        right.append(right[-1] + functional.pad(gap, (0, step), value=torch.inf))
        left.append(left[-1] + functional.pad(gap, (step, 0), value=torch.inf))
    best = torch.stack([left[i] + right[nearest - i] for i in range(nearest + 1)]).amin(0)
    return torch.empty_like(best).scatter_(1, order, best)


def indicator(mass: Tensor, spread: Tensor, balance: float = 1.0, renormalised: bool = False) -> NDArray[np.float64]:
    """Return how much each channel of a layer matters, in [0, 1], shape (channels,).

    Args:
        mass: `sparsity` of the layer's channels.
        spread: `entropy` of the layer's channels.
        balance: weight of the entropy (alpha of the paper).
        renormalised: stretch the result over [0, 1] once more, as the authors' code does; with balance=1 this does
            not give the savings that they publish.

    Raises:
        PruningError: kernels are not finite.
    """
    if not (torch.isfinite(mass).all() and torch.isfinite(spread).all()):
        raise PruningError("kernels of the dense net are not finite and cannot be judged; train it at a lower rate")
    value = torch.sqrt(_stretched(mass, 1.0) / (1 + balance * _stretched(spread, 0.0)))
    found: NDArray[np.float64] = (_stretched(value, 1.0) if renormalised else value).numpy()
    return found


def _stretched(values: Tensor, otherwise: float) -> Tensor:
    """Stretch values linearly to the range [0, 1]; where all are equal, return `otherwise` for each."""
    values = values.cpu().double()
    least, largest = values.min(), values.max()
    if largest - least <= NO_RANGE * largest.abs():
        return torch.full_like(values, otherwise)
    return (values - least) / (largest - least)
