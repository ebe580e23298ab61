"""Clustering: which channels of a group become one.

The features of a channel are its filters in all layers that write it, flattened and set side by side; layers that are
tied by an addition or a depthwise convolution thus share one partition (Ding et al., arXiv 1904.03837, cluster the
one of them, the pacesetter, and hand its partition to the others: `rows="pacesetter"`).
"""

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.base import PruningError
from pruning.rewriting.index_maps import Clusters
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace

KINDS = ("kmeans", "even", "imbalanced")
ROWS = ("all", "pacesetter")
RESTARTS = 10  # of k-means; what scikit-learn took by default when the paper was written
MANY = 128  # clusters from which a single start does, as good as any other and many times faster


def cluster_channels(
    net: nn.Module,
    space: SearchSpace,
    widths: Mapping[str, int],
    kind: str = "kmeans",
    rows: str = "all",
    seed: int = 0,
) -> Clusters:
    """Partition the channels of every group into as many clusters as it is to have channels.

    Where a grouped convolution splits the channels into blocks, each block is clustered on its own, into equally many.

    Args:
        widths: variable group -> clusters; groups that are not named, or keep their width, are left out.
        kind: "kmeans" on the channels' features, "even" neighbours, or "imbalanced": one cluster takes all it can.
        rows: "all" writers of a group give its features, or its `pacesetter` alone.
        seed: of k-means.

    Raises:
        PruningError: an unknown kind or rows; filters that are not finite.
        SpaceError: a width that is not legal.
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
            runs = [k_means(features[start : start + size], count, seed) for start in range(0, group.width, size)]
        else:
            runs = [(even if kind == "even" else imbalanced)(size, count)] * group.conv_groups
        clusters[name] = torch.from_numpy(np.concatenate([run + count * i for i, run in enumerate(runs)]))
    return clusters


def channel_features(net: nn.Module, space: SearchSpace, group: ChannelGroup, rows: str = "all") -> NDArray[np.float64]:
    """Return what k-means compares: shape (group.width, numbers of all filters that write a channel)."""
    tensors = dict(net.named_parameters())
    layers = group.producers if rows == "all" else (pacesetter(space, group),)
    blocks = []
    for name in (f"{layer}.weight" for layer in layers):
        ids = space.axes[name][0] - group.start
        inside = (ids >= 0) & (ids < group.width)
        # A layer may write a channel more than once; its filters then stand side by side, in their order.
        order = np.flatnonzero(inside)[np.argsort(ids[inside], kind="stable")]
        blocks.append(_rows(tensors[name], order, group.width))
    features = np.concatenate(blocks, axis=1)
    if not np.isfinite(features).all():
        raise PruningError(
            f"filters that write {group.name!r} are not finite and cannot be clustered; lower the learning rate of "
            "the dense net or give other weights"
        )
    return features


def pacesetter(space: SearchSpace, group: ChannelGroup) -> str:
    """Return the writer that the others follow in the paper: the stem, or the projection that opens a stage.

    That is the first one to read no channels that a single layer writes, as the last layer of a block does.
    """
    inner = {each.name for each in space.groups if len(each.producers) == 1}
    for layer in group.producers:
        read = {each.name for each in space.groups if layer in each.consumers}
        if not read & inner:
            return layer
    return group.producers[0]


def _rows(weight: Tensor, order: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    return weight.detach().cpu().double().flatten(1).numpy()[order].reshape(width, -1)


def even(channels: int, clusters: int) -> NDArray[np.int64]:
    """Return clusters of neighbours whose sizes differ by at most one, the larger ones first."""
    small, larger = divmod(channels, clusters)
    return np.repeat(np.arange(clusters), [small + (i < larger) for i in range(clusters)])


def imbalanced(channels: int, clusters: int) -> NDArray[np.int64]:
    """Return one cluster that is as large as it can be, and singletons."""
    return np.maximum(np.arange(channels) - (channels - clusters), 0)


def k_means(features: NDArray[np.float64], clusters: int, seed: int) -> NDArray[np.int64]:
    """Return each row's cluster, numbered in the order of their first rows; exactly `clusters` of them.

    Where there are fewer distinct rows than clusters, equal rows are split: the largest cluster gives its last row
    until there are enough.
    """
    from sklearn.cluster import KMeans  # takes a second to load, and other kinds of clusters do without
    from sklearn.exceptions import ConvergenceWarning

    if features.shape[1] > len(features):  # the rows in coordinates of the space they span: the same distances, faster
        features = np.asarray(np.linalg.qr(features.T, mode="r")).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters: settled below
        restarts = RESTARTS if clusters < MANY else 1
        labels = KMeans(clusters, n_init=restarts, random_state=seed % 2**32).fit_predict(features)
    _, labels = np.unique(labels, return_inverse=True)
    for fresh in range(int(labels.max()) + 1, clusters):
        labels[np.flatnonzero(labels == np.bincount(labels).argmax())[-1]] = fresh
    _, first, labels = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[labels].astype(np.int64)
