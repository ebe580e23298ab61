"""k-means of 2-D kernels, for many channels at once. Li et al., arXiv 1812.04368, cluster one channel at a time.

Kernels of 1x1 convolutions are numbers, whose clusters are runs of their sorted order; they are found there.
"""

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24  # of distances at a time


def cluster_kernels(
    kernels: Tensor, clusters: int, generator: torch.Generator, restarts: int = 4, iterations: int = 30
) -> tuple[Tensor, Tensor]:
    """Return the centroids, shape (channels, clusters, D), and each kernel's cluster, shape (channels, kernels).

    The best of some starts is kept per channel. A cluster that loses all its kernels keeps its centroid; where a
    channel has fewer distinct kernels than clusters, some clusters thus stay without kernels.

    Args:
        kernels: shape (channels, kernels, D); results are on the same device and of the same number format.
        clusters: in [1, kernels].
        generator: on the CPU; the draws are made there, so that devices agree.
        restarts: starts, at least 1.
        iterations: of each start at most.
    """
    channels, count, size = kernels.shape
    if size == 1:
        return _on_lines(kernels, clusters, generator, restarts, iterations)
    centroids, index = (
        kernels.new_empty(channels, clusters, size),
        torch.empty(channels, count, dtype=torch.int64, device=kernels.device),
    )
    step = max(1, CHUNK_ELEMENTS // (count * max(clusters, size)))
    for begin in range(0, channels, step):
        part = slice(begin, begin + step)
        centroids[part], index[part] = _best(kernels[part], clusters, generator, restarts, iterations)
    return centroids, index


def inertia(kernels: Tensor, centroids: Tensor, index: Tensor) -> Tensor:
    """Return the sum of squared distances of kernels to their centroids, shape (channels,)."""
    own = centroids.gather(1, index.unsqueeze(2).expand(-1, -1, kernels.shape[2]))
    return (kernels - own).square().sum((1, 2))


def _best(
    kernels: Tensor, clusters: int, generator: torch.Generator, restarts: int, iterations: int
) -> tuple[Tensor, Tensor]:
    best, chosen, least = kernels.new_empty(0), kernels.new_empty(0), kernels.new_full((len(kernels),), torch.inf)
    for start in range(restarts):
        centroids, index = _lloyd(kernels, _plus_plus(kernels, clusters, generator), iterations)
        lost = inertia(kernels, centroids, index)
        if start == 0:
            best, chosen, least = centroids, index, lost
            continue
        better = lost < least
        best = torch.where(better[:, None, None], centroids, best)
        chosen, least = torch.where(better[:, None], index, chosen), torch.minimum(lost, least)
    return best, chosen


def _plus_plus(kernels: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Choose starts among the kernels, each with a chance that grows with its squared distance to those before."""
    channels, count, _ = kernels.shape
    rows = torch.arange(channels, device=kernels.device)
    draws = torch.rand(clusters, channels, generator=generator, dtype=torch.float64).to(kernels.device)
    picked = kernels[rows, (draws[0] * count).long()]
    centroids = [picked]
    distance = (kernels - picked[:, None]).square().sum(2).double()
    for draw in draws[1:]:
        reach = distance.cumsum(1)
        # Where every kernel is already a start, the last one is taken again.
        position = torch.searchsorted(reach, (draw * reach[:, -1]).unsqueeze(1), right=True).clamp_max(count - 1)
        picked = kernels[rows, position[:, 0]]
        centroids.append(picked)
        distance = torch.minimum(distance, (kernels - picked[:, None]).square().sum(2).double())
    return torch.stack(centroids, 1)


def _lloyd(kernels: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    index = _nearest(kernels, centroids)
    for _ in range(iterations):
        place = index.unsqueeze(2).expand_as(kernels)
        sums = torch.zeros_like(centroids).scatter_add_(1, place, kernels)
        counts = torch.zeros_like(centroids[..., 0]).scatter_add_(1, index, torch.ones_like(kernels[..., 0]))
        centroids = torch.where(counts.unsqueeze(2) > 0, sums / counts.clamp_min(1).unsqueeze(2), centroids)
        new = _nearest(kernels, centroids)
        if torch.equal(new, index):
            break
        index = new
    return centroids, index


def _nearest(kernels: Tensor, centroids: Tensor) -> Tensor:
    return torch.cdist(kernels, centroids, compute_mode="donot_use_mm_for_euclid_dist").argmin(2)


def _on_lines(
    kernels: Tensor, clusters: int, generator: torch.Generator, restarts: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """Cluster numbers, shape (channels, kernels, 1); the first start takes runs of equal length."""
    ordered, order = kernels[..., 0].double().sort(dim=1)
    channels, count = ordered.shape
    best = torch.empty(channels, clusters, dtype=torch.float64, device=kernels.device)
    chosen = torch.empty(channels, count, dtype=torch.int64, device=kernels.device)
    least = torch.full((channels,), torch.inf, dtype=torch.float64, device=kernels.device)
    for start in range(restarts):
        if start == 0:
            centres = ordered[:, ((torch.arange(clusters) + 0.5) * count / clusters).long()]
        else:
            centres = _plus_plus(ordered.unsqueeze(2), clusters, generator)[..., 0].sort(dim=1).values
        centres, index = _lines_lloyd(ordered, centres, iterations)
        lost = (ordered - centres.gather(1, index)).square().sum(1)
        better = lost < least
        best = torch.where(better[:, None], centres, best)
        chosen, least = torch.where(better[:, None], index, chosen), torch.minimum(lost, least)
    index = torch.empty_like(chosen).scatter_(1, order, chosen)
    return best.to(kernels.dtype).unsqueeze(2), index


def _lines_lloyd(ordered: Tensor, centres: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Move sorted centres to the means of the runs between their midpoints, until they rest."""
    middle = ordered.mean(1, keepdim=True)
    before = torch.nn.functional.pad((ordered - middle).cumsum(1), (1, 0))
    for _ in range(iterations):
        bounds = _bounds(ordered, centres)
        counts = bounds.diff(dim=1)
        means = before.gather(1, bounds).diff(dim=1) / counts.clamp_min(1) + middle
        moved = torch.where(counts > 0, means, centres)
        if torch.equal(moved, centres):
            break
        centres = moved.sort(dim=1).values
    bounds = _bounds(ordered, centres)
    position = torch.arange(ordered.shape[1], device=ordered.device).expand(len(ordered), -1)
    return centres, torch.searchsorted(bounds[:, 1:-1].contiguous(), position.contiguous(), right=True)


def _bounds(ordered: Tensor, centres: Tensor) -> Tensor:
    """Return where each centre's run begins, and the end: shape (channels, clusters + 1)."""
    midpoints = ((centres[:, :-1] + centres[:, 1:]) / 2).contiguous()
    inner = torch.searchsorted(ordered.contiguous(), midpoints)
    return torch.nn.functional.pad(torch.nn.functional.pad(inner, (1, 0)), (0, 1), value=ordered.shape[1])
