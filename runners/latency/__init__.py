"""Measure and predict how long networks take on the device that will run them; read `meter` first, then `model`."""

from runners.latency.engines import LatencyError, check_latency
from runners.latency.meter import Conditions, LatencyMeter, Reading
from runners.latency.prediction.model import LatencyModel, ModelError
from runners.latency.prediction.model_building import Building, build_model
from runners.latency.timing import Timing, latency_ratio

__all__ = [
    "Building",
    "Conditions",
    "LatencyError",
    "LatencyMeter",
    "LatencyModel",
    "ModelError",
    "Reading",
    "Timing",
    "build_model",
    "check_latency",
    "latency_ratio",
]
