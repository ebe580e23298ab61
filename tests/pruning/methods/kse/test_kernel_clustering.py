import pytest
import torch

from pruning.methods.kse import kernel_clustering
from pruning.methods.kse.kernel_clustering import cluster_kernels, inertia


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def kernels(channels=5, count=12, size=9):
    return torch.randn(channels, count, size, generator=seeded(1), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 4, 9])
def test_more_clusters_lose_less_and_as_many_as_kernels_nothing(size):
    points = kernels(size=size)
    lost = []
    for clusters in range(1, 13):
        centroids, index = cluster_kernels(points, clusters, seeded(), restarts=10)
        assert centroids.shape == (5, clusters, size)
        lost.append(inertia(points, centroids, index))
        assert ((index >= 0) & (index < clusters)).all()
    assert (torch.stack(lost).diff(dim=0) <= 1e-12).all()
    assert lost[-1].max() < 1e-25


@pytest.mark.parametrize("size", [1, 9])
def test_every_kernel_is_with_its_nearest_centroid_and_centroids_are_means(size):
    points = kernels(size=size)
    centroids, index = cluster_kernels(points, 4, seeded())
    nearest = torch.cdist(points, centroids).argmin(2)
    assert torch.equal(nearest, index)
    for channel in range(5):
        for cluster in range(4):
            own = points[channel][index[channel] == cluster]
            torch.testing.assert_close(centroids[channel, cluster], own.mean(0))


@pytest.mark.parametrize("size", [1, 9])
def test_clear_clusters_are_found(size):
    centres = 100.0 * torch.arange(3, dtype=torch.float64).unsqueeze(1).expand(3, size)
    truth = torch.arange(12) % 3
    points = (centres[truth] + torch.rand(12, size, generator=seeded(), dtype=torch.float64)).expand(4, 12, size)
    _, index = cluster_kernels(points.contiguous(), 3, seeded())
    for row in index:
        assert len({(int(a), int(b)) for a, b in zip(row, truth, strict=True)}) == 3


@pytest.mark.parametrize("size", [1, 9])
def test_more_clusters_than_distinct_kernels_give_all_of_them_and_no_nan(size):
    points = kernels(channels=3, size=size)[:, :2].repeat(1, 4, 1)
    points[2] = 0
    centroids, index = cluster_kernels(points, 5, seeded())
    assert torch.isfinite(centroids).all()
    assert inertia(points, centroids, index).max() < 1e-25


@pytest.mark.parametrize("size", [1, 9])
def test_results_depend_on_the_seed_and_not_on_the_chunk_size(monkeypatch, size):
    points = kernels(size=size)
    first, second = (cluster_kernels(points, 4, seeded(3)) for _ in range(2))
    monkeypatch.setattr(kernel_clustering, "CHUNK_ELEMENTS", 4 * 12 * 9 * 2)
    monkeypatch.setattr(kernel_clustering, "CACHED_ELEMENTS", 1)
    third = cluster_kernels(points, 4, seeded(3))
    for one, other, chunked in zip(first, second, third, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, chunked, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_one_restart_is_lloyd_with_exact_distances(dtype, offset):
    points = (kernels(count=40) + offset).to(dtype)
    centroids, index = cluster_kernels(points, 10, seeded(3), restarts=1)
    # It rests, which products of matrices alone would not show: far from the origin they lose the differences.
    exact = (points.unsqueeze(2).double() - centroids.unsqueeze(1).double()).square().sum(3)
    own = exact.gather(2, index.unsqueeze(2))[..., 0]
    slack = 1e-12 if dtype == torch.float64 else 1e-5  # of rounding in the distances, relative
    assert (own <= exact.amin(2) * (1 + slack)).all()
    for channel in range(5):
        for cluster in index[channel].unique():
            mean = points[channel][index[channel] == cluster].mean(0)
            torch.testing.assert_close(centroids[channel, cluster], mean)


def test_of_clusters_equally_near_the_first_is_taken():
    points = torch.tensor([[[0.0, 0.1], [3.0, 0.3], [-3.0, 0.7]]])
    twice = torch.tensor([[[9.0, 9.0], [0.1, 0.3], [0.1, 0.3]]])
    assert kernel_clustering._nearest(points, twice).tolist() == [[1, 1, 1]]


def test_it_is_about_as_good_as_scikit_learn():
    from sklearn.cluster import KMeans

    points = kernels(channels=20, count=32)
    centroids, index = cluster_kernels(points, 8, seeded(), restarts=10)
    theirs = sum(KMeans(8, n_init=10, random_state=0).fit(channel.numpy()).inertia_ for channel in points)
    assert float(inertia(points, centroids, index).sum()) < 1.05 * theirs
