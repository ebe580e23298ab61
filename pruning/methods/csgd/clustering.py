"""Clusters of the channels of a group, each of which is to become one channel.

The features of a channel are its filters in all layers that write it, flattened and concatenated. Layers tied by an
addition or a depthwise convolution thus share their clusters. Ding et al., arXiv 1904.03837, cluster one of these
layers, the pacesetter, and give its clusters to the others (`rows="pacesetter"`).
"""

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.base import PruningError
from pruning.criteria.weights import pacesetter
from pruning.rewriting.index_maps import Clusters
from spaces.groups import ChannelGroup
from spaces.slicing.filters import as_filters
from spaces.space import SearchSpace

KINDS = ("kmeans", "even", "imbalanced")
ROWS = ("all", "pacesetter")
RESTARTS = 10  # of k-means; the default of scikit-learn when the paper was written
MANY_CLUSTERS = 128  # from here on one start of k-means is as good as ten, and many times faster


def cluster_channels(
    net: nn.Module,
    space: SearchSpace,
    widths: Mapping[str, int],
    kind: str = "kmeans",
    rows: str = "all",
    seed: int = 0,
) -> Clusters:
    """Partition the channels of every group into as many clusters as the group's new width.

    Where a grouped convolution splits the channels into conv groups, each conv group is partitioned on its own, into
    equally many clusters.

    Args:
        widths: variable group -> number of clusters; the result leaves out groups that keep their width.
        kind: "kmeans" on the channels' features, "even" clusters of neighbours, or "imbalanced": one cluster as large
            as possible.
        rows: layers whose filters are the features: "all" that write the group, or its `pacesetter`.
        seed: of k-means.

    Raises:
        PruningError: an unknown kind or rows; filters are not finite.
        SpaceError: a width is not legal.
    """
    space.check(widths)
    for name, value, known in (("kind", kind, KINDS), ("rows", rows, ROWS)):
        if value not in known:
            raise PruningError(f"{name} of clusters is {value!r}; it must be one of {', '.join(known)}")
    clusters = {}
    for name, width in widths.items():
        group = space.by_name[name]
        if width == group.width:
            continue
        size, count = group.width // group.conv_groups, width // group.conv_groups
        if kind == "kmeans":
            features = channel_features(net, space, group, rows)
            labels = [k_means(features[start : start + size], count, seed) for start in range(0, group.width, size)]
        else:
            labels = [(even if kind == "even" else imbalanced)(size, count)] * group.conv_groups
        clusters[name] = torch.from_numpy(np.concatenate([own + count * i for i, own in enumerate(labels)]))
    return clusters


def channel_features(net: nn.Module, space: SearchSpace, group: ChannelGroup, rows: str = "all") -> NDArray[np.float64]:
    """Return the features that k-means compares, shape (group.width, numbers in all filters that write a channel)."""
    tensors = dict(net.named_parameters())
    layers = group.producers if rows == "all" else (pacesetter(space, group),)
    by_layer = []
    for name in (space.layers[layer].weight for layer in layers):
        ids = space.axes[name][0] - group.start
        inside = (ids >= 0) & (ids < group.width)
        # A layer may write a channel more than once; these filters are concatenated in their order.
        order = np.flatnonzero(inside)[np.argsort(ids[inside], kind="stable")]
        by_layer.append(_rows(as_filters(space, name, tensors[name]), order, group.width))
    features = np.concatenate(by_layer, axis=1)
    if not np.isfinite(features).all():
        raise PruningError(
            f"filters that write {group.name!r} are not finite and cannot be clustered; lower the learning rate of "
            "the dense net or give other weights"
        )
    return features


def _rows(filters: Tensor, order: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    return filters.detach().cpu().double().flatten(1).numpy()[order].reshape(width, -1)


def even(channels: int, clusters: int) -> NDArray[np.int64]:
    """Return clusters of neighbours whose sizes differ by at most one, the larger ones first."""
    small, larger = divmod(channels, clusters)
    return np.repeat(np.arange(clusters), [small + (i < larger) for i in range(clusters)])


def imbalanced(channels: int, clusters: int) -> NDArray[np.int64]:
    """Return one cluster that is as large as possible, and clusters of one channel."""
    return np.maximum(np.arange(channels) - (channels - clusters), 0)


def k_means(features: NDArray[np.float64], clusters: int, seed: int) -> NDArray[np.int64]:
    """Return each row's cluster, out of exactly `clusters`, numbered in the order of their first rows.

    If there are fewer distinct rows than clusters, equal rows are split: the largest cluster gives up its last row
    until there are enough clusters.
    """
    from sklearn.cluster import KMeans  # loads for a second; other kinds of clusters do not need it
    from sklearn.exceptions import ConvergenceWarning

    if features.shape[1] > len(features):  # coordinates in the span of the rows: equal distances, but faster
        features = np.asarray(np.linalg.qr(features.T, mode="r")).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer distinct rows than clusters; handled below
        restarts = RESTARTS if clusters < MANY_CLUSTERS else 1
        labels = KMeans(clusters, n_init=restarts, random_state=seed % 2**32).fit_predict(features)
    _, labels = np.unique(labels, return_inverse=True)
    for fresh in range(int(labels.max()) + 1, clusters):
        labels[np.flatnonzero(labels == np.bincount(labels).argmax())[-1]] = fresh
    _, first, labels = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[labels].astype(np.int64)
