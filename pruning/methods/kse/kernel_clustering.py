"""k-means of 2-D kernels, for many channels at once. Li et al., arXiv 1812.04368, cluster one channel at a time.

Kernels of 1x1 convolutions are numbers, whose clusters are runs of their sorted order; they are found there.
"""

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_ELEMENTS = 2**20  # of the kernels of all starts at a time
CACHED_ELEMENTS = 2**20  # of distances at a time: more leave the processor's cache


def cluster_kernels(
    kernels: Tensor, clusters: int, generator: torch.Generator, restarts: int = 4, iterations: int = 30
) -> tuple[Tensor, Tensor]:
    """Return the centroids, shape (channels, clusters, D), and each kernel's cluster, shape (channels, kernels).

    The best of some starts is kept per channel, and all draws are made first, so that they do not depend on how many
    channels are done at a time. A cluster that loses all its kernels keeps its centroid; where a
    channel has fewer distinct kernels than clusters, some clusters thus stay without kernels.

    Args:
        kernels: shape (channels, kernels, D); results are on the same device and of the same number format.
        clusters: in [1, kernels].
        generator: on the CPU; the draws are made there, so that devices agree.
        restarts: starts, at least 1.
        iterations: of each start at most.
    """
    channels, count, size = kernels.shape
    drawn = restarts - 1 if size == 1 else restarts
    draws = torch.rand(drawn, clusters, channels, generator=generator, dtype=torch.float64).to(kernels.device)
    step = max(1, CHUNK_ELEMENTS // (restarts * count * size))
    parts = zip(kernels.split(step), draws.split(step, dim=2), strict=True)
    solved = [_on_lines(*part, iterations) if size == 1 else _in_space(*part, iterations) for part in parts]
    return torch.cat([centroids for centroids, _ in solved]), torch.cat([index for _, index in solved])


def inertia(kernels: Tensor, centroids: Tensor, index: Tensor) -> Tensor:
    """Return the sum of squared distances of kernels to their centroids, shape (channels,)."""
    own = centroids.gather(1, index.unsqueeze(2).expand(-1, -1, kernels.shape[2]))
    return (kernels - own).square().sum((1, 2))


def _in_space(kernels: Tensor, draws: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Run all starts of all channels at once; draws have the shape (starts, clusters, channels)."""
    restarts = len(draws)
    runs = kernels.repeat_interleave(restarts, dim=0)  # channel by channel
    position = _plus_plus(kernels, draws).flatten(0, 1)
    centroids = runs.gather(1, position.unsqueeze(2).expand(-1, -1, kernels.shape[2]))
    index = _lloyd(runs, centroids, iterations)
    best = _best(inertia(runs, centroids, index), restarts)
    return centroids[best], index[best]


def _best(lost: Tensor, restarts: int) -> Tensor:
    """Return which run of each channel lost least, the first of those that lost equally little."""
    channels = len(lost) // restarts
    least: Tensor = lost.view(channels, restarts).argmin(1)
    return torch.arange(channels, device=lost.device) * restarts + least


def _plus_plus(kernels: Tensor, draws: Tensor) -> Tensor:
    """Choose starts among the kernels, each with a chance that grows with its squared distance to those before.

    Args:
        draws: in [0, 1), shape (starts, clusters, channels).

    Returns:
        Positions among the kernels, shape (channels, starts, clusters).
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
        # Where every kernel is already a start, the last one is taken again.
        found = torch.searchsorted(reach, draw.unsqueeze(2) * reach[..., -1:], right=True)
        place.copy_(found[..., 0].clamp_max_(count - 1))
        squares.write(place, new)
        torch.minimum(distance, new, out=distance)
    return positions.permute(1, 2, 0)


class _Squares:
    """Squared distances between the kernels of a channel, in float64.

    They are |a|^2 - 2 ab + |b|^2, a product of matrices, which would lose too much in float32.
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
        """Write those from the kernels at `place`, shape (channels, starts), into (channels, starts, kernels)."""
        if self._line is not None:
            torch.sub(self._line[:, 0][self._channel, place].unsqueeze(2), self._line, out=distance).square_()
        else:
            torch.bmm(self._rows[self._channel, place], self._columns, out=distance).clamp_min_(0)


def _lloyd(kernels: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    """Move centroids in place to the means of their kernels, and return each kernel's cluster.

    A run whose kernels all stay where they are is done and leaves the others.
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
    """Return each kernel's nearest centroid, the first of those equally near, shape (runs, kernels)."""
    step = max(1, CACHED_ELEMENTS // (kernels.shape[1] * centroids.shape[1]))
    return torch.cat([*map(_nearest_cached, kernels.split(step), centroids.split(step))])


def _nearest_cached(kernels: Tensor, centroids: Tensor) -> Tensor:
    """Find the nearest centroid by the largest 2 xc - |c|^2, which is a product of matrices.

    Where the second is so close to it that rounding may have swapped them, the distances are computed one by one.
    """
    (runs, clusters, size), count = centroids.shape, kernels.shape[1]
    norms = centroids.square().sum(2, keepdim=True)
    rows = torch.cat([2 * centroids, -norms], 2)
    near = torch.bmm(rows, functional.pad(kernels, (0, 1), value=1.0).transpose(1, 2))
    # Pooling finds places of maxima several times faster than argmax: it compares neighbours in memory side by side.
    images = near.unsqueeze(2).permute(0, 3, 1, 2)
    most, place = functional.max_pool2d(images, (clusters, 1), return_indices=True)
    index = place.reshape(runs, count)
    if clusters == 1:
        return index
    second = near.scatter_(1, index.unsqueeze(1), -torch.inf).amax(1)
    reach = kernels.square().sum(2).sqrt() + norms.amax(1).sqrt()
    unclear = most.reshape(runs, count) - second <= 2 * (size + 4) * torch.finfo(near.dtype).eps * reach.square()
    run, kernel = unclear.nonzero(as_tuple=True)
    step = max(1, CACHED_ELEMENTS // (clusters * size))
    for some, which in zip(run.split(step), kernel.split(step), strict=True):
        exact = torch.cdist(
            kernels[some, which].unsqueeze(1), centroids[some], compute_mode="donot_use_mm_for_euclid_dist"
        )
        index[some, which] = exact[:, 0].argmin(1)
    return index


def _on_lines(kernels: Tensor, draws: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Cluster numbers, shape (channels, kernels, 1); before the drawn starts comes one of runs of equal length."""
    ordered, order = kernels[..., 0].double().sort(dim=1)
    (drawn, clusters, _), count = draws.shape, ordered.shape[1]
    middles = ordered[:, ((torch.arange(clusters) + 0.5) * count / clusters).long()]
    position = _plus_plus(ordered.unsqueeze(2), draws).sort(dim=2).values
    starts = ordered.gather(1, position.flatten(1)).unflatten(1, (drawn, clusters))
    runs = ordered.repeat_interleave(drawn + 1, dim=0)
    centres = torch.cat([middles.unsqueeze(1), starts], 1).flatten(0, 1)
    index = _lines_lloyd(runs, centres, iterations)
    best = _best((runs - centres.gather(1, index)).square().sum(1), drawn + 1)
    index = torch.empty_like(order).scatter_(1, order, index[best])
    return centres[best].to(kernels.dtype).unsqueeze(2), index


def _lines_lloyd(ordered: Tensor, centres: Tensor, iterations: int) -> Tensor:
    """Move sorted centres in place to the means of the numbers nearest to them, and return each number's cluster."""
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
    """Return where each centre's run begins, and the end: shape (channels, clusters + 1)."""
    midpoints = ((centres[:, :-1] + centres[:, 1:]) / 2).contiguous()
    inner = torch.searchsorted(ordered.contiguous(), midpoints)
    return functional.pad(functional.pad(inner, (1, 0)), (0, 1), value=ordered.shape[1])
