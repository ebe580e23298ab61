"""Discriminant Information: `Discriminant` is the criterion, `RidgeInformation` the closed form that it ranks by."""

from pruning.criteria.discriminant.criterion import Discriminant
from pruning.criteria.discriminant.elimination import Ranking, eliminate
from pruning.criteria.discriminant.information import RidgeInformation

__all__ = ["Discriminant", "Ranking", "RidgeInformation", "eliminate"]
