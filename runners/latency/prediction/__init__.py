"""Predict how long networks of given widths take; read `model` first, then `model_building`."""

from runners.latency.prediction.model import LatencyModel, ModelError
from runners.latency.prediction.model_building import Building, build_model

__all__ = ["Building", "LatencyModel", "ModelError", "build_model"]
