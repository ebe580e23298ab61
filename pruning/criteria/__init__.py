"""Pruning criteria: each scores the channels of every group. `CRITERIA` in `pruning.base` lists them by name.

The names here are what a new criterion is built on: measures of filters, and of feature maps.
"""

from pruning.criteria.feature_maps import map_scores
from pruning.criteria.weights import filter_scores

__all__ = ["filter_scores", "map_scores"]
