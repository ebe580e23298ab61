"""Pruning criteria: each scores the channels of every group. `CRITERIA` in `pruning.base` lists them by name."""

from pruning.criteria.bn_scale import BatchNormScale
from pruning.criteria.discriminant.criterion import Discriminant
from pruning.criteria.feature_rank import FeatureRank
from pruning.criteria.geometric_median import GeometricMedian
from pruning.criteria.norms import L1, L2
from pruning.criteria.random import Random
from pruning.criteria.taylor import Taylor

__all__ = ["L1", "L2", "BatchNormScale", "Discriminant", "FeatureRank", "GeometricMedian", "Random", "Taylor"]
