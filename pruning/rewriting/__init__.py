"""A narrow network from a wide one: `slice_channels` keeps channels, `merge_channels` averages clusters of them."""

from pruning.rewriting.index_maps import ClusterIndexMap, Clusters, MergedDimension, NetworkClusters
from pruning.rewriting.narrowing import narrow_space, stages
from pruning.rewriting.surgery import merge_channels, slice_channels

__all__ = [
    "ClusterIndexMap",
    "Clusters",
    "MergedDimension",
    "NetworkClusters",
    "merge_channels",
    "narrow_space",
    "slice_channels",
    "stages",
]
