"""Activation moments of a dense network: `gather` them from calibration images, `reconstruct` a cut net with them."""

from pruning.calibration.activation_moments import ActivationMoments, Recipe, Site, gather
from pruning.calibration.flattened_maps import flattened_scores, label_codes
from pruning.calibration.reconstruction import reconstruct
from pruning.calibration.second_moments import MomentAccumulator, Moments, ridge_for

__all__ = [
    "ActivationMoments",
    "MomentAccumulator",
    "Moments",
    "Recipe",
    "Site",
    "flattened_scores",
    "gather",
    "label_codes",
    "reconstruct",
    "ridge_for",
]
