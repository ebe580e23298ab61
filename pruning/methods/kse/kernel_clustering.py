"""k-means of 2-D kernels, for many channels at once. Li et al., arXiv 1812.04368, cluster one channel at a time.

Kernels of 1x1 convolutions are numbers. Their clusters are intervals of their sorted order, and are searched there.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pruning.rewriting.float64 import has_float64

CHUNK_ELEMENTS = 2**20  # numbers of the kernels of all restarts that are clustered at a time
CACHED_ELEMENTS = 2**20  # distances that are computed at a time: more do not fit into the processor's cache


def cluster_kernels(
    kernels: Tensor, clusters: int, generator: torch.Generator, restarts: int = 4, iterations: int = 30
) -> tuple[Tensor, Tensor]:
    """Return the centroids, shape (channels, clusters, D), and each kernel's cluster, shape (channels, kernels).

    Of several restarts, each channel keeps the one with the smallest inertia. All random draws are made first, so that
    they do not depend on how many channels are clustered at a time. A cluster that loses all its kernels keeps its
    centroid, so some clusters stay without kernels where a channel has fewer distinct kernels than clusters.

    Args:
        kernels: shape (channels, kernels, D); results have the same device and dtype.
        clusters: in [1, kernels].
        generator: on the CPU, so that all devices get the same draws.
        restarts: at least 1.
        iterations: largest number per restart.
    """
    device = kernels.device
    kernels = kernels if has_float64(device) else kernels.cpu()
    channels, count, size = kernels.shape
    drawn = restarts - 1 if size == 1 else restarts
    draws = torch.rand(drawn, clusters, channels, generator=generator, dtype=torch.float64).to(kernels.device)
    step = max(1, CHUNK_ELEMENTS // (restarts * count * size))
    parts = zip(kernels.split(step), draws.split(step, dim=2), strict=True)
    solved = [_on_lines(*part, iterations) if size == 1 else _in_space(*part, iterations) for part in parts]
    centroids, index = (torch.cat(part) for part in zip(*solved, strict=True))
    return centroids.to(device), index.to(device)


def inertia(kernels: Tensor, centroids: Tensor, index: Tensor) -> Tensor:
    """Return the sum of squared distances of kernels to their centroids, shape (channels,)."""
    own = centroids.gather(1, index.unsqueeze(2).expand(-1, -1, kernels.shape[2]))
    return (kernels - own).square().sum((1, 2))


def _in_space(kernels: Tensor, draws: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Cluster kernels of any size, with all restarts of all channels at once.

    Args:
        draws: in [0, 1), shape (restarts, clusters, channels).
    """
    restarts = len(draws)
    repeated = kernels.repeat_interleave(restarts, dim=0)  # the restarts of a channel are neighbours
    position = _plus_plus(kernels, draws).flatten(0, 1)
    centroids = repeated.gather(1, position.unsqueeze(2).expand(-1, -1, kernels.shape[2]))
    index = _lloyd(repeated, centroids, iterations)
    best = _best(inertia(repeated, centroids, index), restarts)
    return centroids[best], index[best]


def _best(inertias: Tensor, restarts: int) -> Tensor:
    """Return the index of each channel's restart with the smallest inertia; of equal ones, the first."""
    channels = len(inertias) // restarts
    least: Tensor = inertias.view(channels, restarts).argmin(1)
    return torch.arange(channels, device=inertias.device) * restarts + least


def _plus_plus(kernels: Tensor, draws: Tensor) -> Tensor:
    """Choose initial centroids among the kernels by k-means++.

    The probability of a kernel is proportional to its squared distance to the nearest centroid chosen before it.

    Args:
        draws: in [0, 1), shape (restarts, clusters, channels).

    Returns:
        Positions among the kernels, shape (channels, restarts, clusters).
    """
    (restarts, clusters, channels), count = draws.shape, kernels.shape[1]
    squares = _Squares(kernels)
    draws = draws.permute(1, 2, 0).contiguous()
    positions = torch.empty(clusters, channels, restarts, dtype=torch.int64, device=kernels.device)
    positions[0] = (draws[0] * count).long()
    distance, new, reach = torch.empty(3, channels, restarts, count, dtype=torch.float64, device=kernels.device)
    squares.write(positions[0], distance)
    for place, draw in zip(positions[1:], draws[1:], strict=True):
        torch.cumsum(distance, 2, out=reach)
        # Where every kernel is already a centroid, the last one is chosen once more.
        found = torch.searchsorted(reach, draw.unsqueeze(2) * reach[..., -1:], right=True)
        place.copy_(found[..., 0].clamp_max_(count - 1))
        squares.write(place, new)
        torch.minimum(distance, new, out=distance)
    return positions.permute(1, 2, 0)


class _Squares:
    """Squared distances between the kernels of a channel, in float64.

    They are |a|^2 - 2 ab + |b|^2, computed as a product of matrices. float32 would lose too much precision.
    """

    def __init__(self, kernels: Tensor) -> None:
        points = kernels.double()
        norms = points.square().sum(2, keepdim=True)
        ones = torch.ones_like(norms)
        self._rows = torch.cat([-2 * points, ones, norms], 2)
        self._columns = torch.cat([points, norms, ones], 2).transpose(1, 2)
        self._line = points.transpose(1, 2) if points.shape[2] == 1 else None
        self._channel = torch.arange(len(points), device=points.device).unsqueeze(1)

    def write(self, place: Tensor, distance: Tensor) -> None:
        """Write the squared distances of all kernels to those at `place` into `distance`.

        Args:
            place: shape (channels, restarts).
            distance: shape (channels, restarts, kernels).
        """
        if self._line is not None:
            torch.sub(self._line[:, 0][self._channel, place].unsqueeze(2), self._line, out=distance).square_()
        else:
            torch.bmm(self._rows[self._channel, place], self._columns, out=distance).clamp_min_(0)


def _lloyd(kernels: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    """Move centroids in place to the means of their kernels until nothing changes; return each kernel's cluster.

    A row in kernel_part no kernel changes its cluster has converged and is left out of the next iterations.

    Args:
        kernels: shape (rows, kernels, D); a row is one restart of one channel.
        centroids: shape (rows, clusters, D).
        iterations: largest number.
    """
    index = _nearest(kernels, centroids)
    moving = torch.arange(len(kernels), device=kernels.device)
    own, centres, old = kernels, centroids, index
    for _ in range(iterations):
        centres = _means(own, centres, old)
        new = _nearest(own, centres)
        changed = (new != old).any(1)
        centroids[moving], index[moving] = centres, new
        if not changed.any():
            break
        moving, own, centres, old = moving[changed], own[changed], centres[changed], new[changed]
    return index


def _means(kernels: Tensor, centroids: Tensor, index: Tensor) -> Tensor:
    place = index.unsqueeze(2).expand_as(kernels)
    sums = torch.zeros_like(centroids).scatter_add_(1, place, kernels)
    counts = torch.zeros_like(centroids[..., 0]).scatter_add_(1, index, torch.ones_like(kernels[..., 0]))
    return torch.where(counts.unsqueeze(2) > 0, sums / counts.clamp_min(1).unsqueeze(2), centroids)


def _nearest(kernels: Tensor, centroids: Tensor) -> Tensor:
    """Return each kernel's nearest centroid, shape (rows, kernels); of equally near ones, the first."""
    step = max(1, CACHED_ELEMENTS // (kernels.shape[1] * centroids.shape[1]))
    return torch.cat([*map(_nearest_cached, kernels.split(step), centroids.split(step))])


def _nearest_cached(kernels: Tensor, centroids: Tensor) -> Tensor:
    """Find the nearest centroid by the largest 2 xc - |c|^2, kernel_part is a product of matrices.

    Where the second largest is so close that rounding may have swapped the two, exact distances are computed.
    """
    (rows, clusters, size), count = centroids.shape, kernels.shape[1]
    norms = centroids.square().sum(2, keepdim=True)
    doubled = torch.cat([2 * centroids, -norms], 2)
    near = torch.bmm(doubled, functional.pad(kernels, (0, 1), value=1.0).transpose(1, 2))
    # Max pooling finds the positions of maxima several times faster than argmax: it compares neighbours in memory.
    images = near.unsqueeze(2).permute(0, 3, 1, 2)
    most, place = functional.max_pool2d(images, (clusters, 1), return_indices=True)
    index = place.reshape(rows, count)
    if clusters == 1:
        return index
    second = near.scatter_(1, index.unsqueeze(1), -torch.inf).amax(1)
    reach = kernels.square().sum(2).sqrt() + norms.amax(1).sqrt()
    unclear = most.reshape(rows, count) - second <= 2 * (size + 4) * torch.finfo(near.dtype).eps * reach.square()
    row, kernel = unclear.nonzero(as_tuple=True)
    step = max(1, CACHED_ELEMENTS // (clusters * size))
    for row_part, kernel_part in zip(row.split(step), kernel.split(step), strict=True):
        exact = torch.cdist(
            kernels[row_part, kernel_part].unsqueeze(1),
            centroids[row_part],
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        index[row_part, kernel_part] = exact[:, 0].argmin(1)
    return index


def _on_lines(kernels: Tensor, draws: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Cluster kernels that are numbers; the first restart begins with intervals that hold equally many kernels.

    Args:
        kernels: shape (channels, kernels, 1).
        draws: in [0, 1), shape (restarts - 1, clusters, channels).
    """
    ordered, order = kernels[..., 0].double().sort(dim=1)
    (drawn, clusters, _), count = draws.shape, ordered.shape[1]
    middles = ordered[:, ((torch.arange(clusters) + 0.5) * count / clusters).long()]
    position = _plus_plus(ordered.unsqueeze(2), draws).sort(dim=2).values
    starts = ordered.gather(1, position.flatten(1)).unflatten(1, (drawn, clusters))
    repeated = ordered.repeat_interleave(drawn + 1, dim=0)
    centres = torch.cat([middles.unsqueeze(1), starts], 1).flatten(0, 1)
    index = _lines_lloyd(repeated, centres, iterations)
    best = _best((repeated - centres.gather(1, index)).square().sum(1), drawn + 1)
    index = torch.empty_like(order).scatter_(1, order, index[best])
    return centres[best].to(kernels.dtype).unsqueeze(2), index


def _lines_lloyd(ordered: Tensor, centres: Tensor, iterations: int) -> Tensor:
    """Move sorted centres in place to the means of the numbers nearest to them; return each number's cluster."""
    middle = ordered.mean(1, keepdim=True)
    before = functional.pad((ordered - middle).cumsum(1), (1, 0))
    moving = torch.arange(len(ordered), device=ordered.device)
    own, old = ordered, centres
    for _ in range(iterations):
        bounds = _bounds(own, old)
        counts = bounds.diff(dim=1)
        means = before.gather(1, bounds).diff(dim=1) / counts.clamp_min(1) + middle
        moved = torch.where(counts > 0, means, old)
        changed = (moved != old).any(1)
        if not changed.any():
            break
        moving, own, before, middle = moving[changed], own[changed], before[changed], middle[changed]
        old = moved[changed].sort(dim=1).values
        centres[moving] = old
    bounds = _bounds(ordered, centres)
    position = torch.arange(ordered.shape[1], device=ordered.device).expand(len(ordered), -1)
    return torch.searchsorted(bounds[:, 1:-1].contiguous(), position.contiguous(), right=True)


def _bounds(ordered: Tensor, centres: Tensor) -> Tensor:
    """Return where each centre's interval of the sorted numbers begins, and the end: shape (rows, clusters + 1)."""
    midpoints = ((centres[:, :-1] + centres[:, 1:]) / 2).contiguous()
    inner = torch.searchsorted(ordered.contiguous(), midpoints)
    return functional.pad(functional.pad(inner, (1, 0)), (0, 1), value=ordered.shape[1])
