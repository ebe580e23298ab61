"""Latency of candidates: predicted for proposals, measured between trials; start with `queue.MeasurementQueue`."""

from search.latency.calibration import LatencyCalibration, calibrate_latency
from search.latency.predictor import LatencyPredictor
from search.latency.queue import MeasurementQueue, restore_readings

__all__ = ["LatencyCalibration", "LatencyPredictor", "MeasurementQueue", "calibrate_latency", "restore_readings"]
