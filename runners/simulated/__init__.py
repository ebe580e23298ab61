"""Evaluate trials by closed forms instead of training, for tests and for comparing samplers; read `runner` first."""

from runners.simulated.grouped_accuracy import GroupedAccuracy
from runners.simulated.runner import SaturatingAccuracy, SimulatedOutcome, SimulatedRunner

__all__ = ["GroupedAccuracy", "SaturatingAccuracy", "SimulatedOutcome", "SimulatedRunner"]
