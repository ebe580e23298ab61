import numpy as np
import pytest
import tiny_nets as nets
import torch

from pruning.base import PruningError
from pruning.methods.csgd.clustering import channel_features, cluster_channels, even, imbalanced, k_means
from spaces.errors import SpaceError
from spaces.space import SearchSpace
from spaces.tracing.tracer import trace


def traced(net: torch.nn.Module) -> SearchSpace:
    return trace(net, torch.empty(1, *nets.IMAGE))


def test_even_clusters_are_neighbours() -> None:
    assert even(6, 4).tolist() == [0, 0, 1, 1, 2, 3]
    assert even(6, 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_imbalanced_clusters_are_one_large_one_and_singletons() -> None:
    assert imbalanced(6, 4).tolist() == [0, 0, 0, 1, 2, 3]
    assert imbalanced(5, 1).tolist() == [0, 0, 0, 0, 0]


def test_k_means_finds_clear_clusters_and_numbers_them_in_order() -> None:
    centres = np.array([[9.0, 0.0], [0.0, 9.0], [-9.0, 0.0]])[[0, 1, 0, 2, 1, 0]]
    assert k_means(centres + np.random.default_rng(0).normal(size=(6, 2)), 3, 0).tolist() == [0, 1, 0, 2, 1, 0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["kmeans", "even", "imbalanced"])
def test_clusters_cover_all_channels_and_none_is_empty(kind: str, seed: int) -> None:
    net = nets.Residual()
    for name, labels in cluster_channels(net, traced(net), {"stem": 5, "inner": 2}, kind, seed=seed).items():
        assert labels.unique().tolist() == list(range({"stem": 5, "inner": 2}[name]))
        assert len(labels) == {"stem": 8, "inner": 6}[name]


def test_the_same_seed_gives_the_same_clusters() -> None:
    net = nets.Depthwise()
    first, second = (cluster_channels(net, traced(net), {"expand": 5}, seed=4)["expand"] for _ in range(2))
    assert torch.equal(first, second)


def test_a_group_at_full_width_is_left_out() -> None:
    net = nets.Residual()
    assert set(cluster_channels(net, traced(net), {"stem": 8, "inner": 2})) == {"inner"}


@pytest.mark.parametrize("kind", ["kmeans", "even", "imbalanced"])
def test_runs_of_a_grouped_convolution_are_clustered_each_on_its_own(kind: str) -> None:
    net = nets.Grouped()
    conv_groups = cluster_channels(net, traced(net), {"first": 8}, kind)["first"].reshape(4, 4)
    assert [labels.unique().tolist() for labels in conv_groups] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_filters_that_are_all_alike_are_split_into_as_many_clusters_as_asked() -> None:
    net = nets.Residual()
    torch.nn.init.zeros_(net.inner.weight)
    labels = cluster_channels(net, traced(net), {"inner": 4})["inner"]
    assert labels.unique().tolist() == [0, 1, 2, 3]


def test_more_clusters_than_distinct_filters_split_equal_ones_and_keep_unlike_ones_apart() -> None:
    features = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    labels = k_means(features, 4, 0)
    assert sorted(set(labels.tolist())) == [0, 1, 2, 3]
    assert all(len(np.unique(features[labels == cluster], axis=0)) == 1 for cluster in range(4))


def test_as_many_clusters_as_channels_are_the_channels() -> None:
    assert k_means(np.zeros((3, 2)), 3, 0).tolist() == [0, 1, 2]


def test_a_channel_is_compared_by_all_filters_that_write_it() -> None:
    net = nets.Residual()
    space = traced(net)
    stem = space.by_name["stem"]
    expected = torch.cat([net.stem.weight.flatten(1), net.outer.weight.flatten(1)], 1).double().detach().numpy()
    np.testing.assert_array_equal(channel_features(net, space, stem), expected)
    np.testing.assert_array_equal(channel_features(net, space, stem, "pacesetter"), expected[:, :27])


def test_filters_that_are_nan_are_an_error() -> None:
    net = nets.Residual()
    space = traced(net)
    torch.nn.init.constant_(net.inner.weight, float("nan"))
    with pytest.raises(PruningError, match="'inner' are not finite"):
        cluster_channels(net, space, {"inner": 2})


def test_what_cannot_be_clustered_is_named() -> None:
    net = nets.Residual()
    with pytest.raises(PruningError, match="kind of clusters is 'odd'; it must be one of kmeans"):
        cluster_channels(net, traced(net), {"inner": 2}, "odd")
    with pytest.raises(PruningError, match="rows of clusters is 'some'"):
        cluster_channels(net, traced(net), {"inner": 2}, rows="some")
    with pytest.raises(SpaceError, match="width 7 of 'inner'"):
        cluster_channels(net, traced(net), {"inner": 7})
