"""The training loop of dense and narrow networks, with schedules, numerical precision and cached dense weights.

Start with `fit`.
"""

from runners.training.compute_format import ComputeFormat, measure_compute_format
from runners.training.dense import DenseRecipe, given_net, trained_net
from runners.training.loop import accuracy, fit, pick_device, reestimate_batchnorm
from runners.training.run import TrainingError, TrainingRun

__all__ = [
    "ComputeFormat",
    "DenseRecipe",
    "TrainingError",
    "TrainingRun",
    "accuracy",
    "fit",
    "given_net",
    "measure_compute_format",
    "pick_device",
    "reestimate_batchnorm",
    "trained_net",
]
