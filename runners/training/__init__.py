"""The training loop of dense and narrow networks, with schedules, numerical precision and cached dense weights.

Start with `fit`.
"""

from runners.training.compute_format import ComputeFormat, measure_compute_format
from runners.training.dense import DenseRecipe, given_net, trained_net
from runners.training.devices import pick_device
from runners.training.loop import fit
from runners.training.run import TrainingError, TrainingRun
from runners.training.scoring import accuracy, reestimate_batchnorm, score
from runners.training.task import Task, TaskError

__all__ = [
    "ComputeFormat",
    "DenseRecipe",
    "Task",
    "TaskError",
    "TrainingError",
    "TrainingRun",
    "accuracy",
    "fit",
    "given_net",
    "measure_compute_format",
    "pick_device",
    "reestimate_batchnorm",
    "score",
    "trained_net",
]
