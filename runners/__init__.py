"""Run trials, on one machine or a cluster, and train and measure their networks; start with `Trial` and `RUNNERS`.

The names below are imported when they are first used, so that `import runners` stays light.
"""

from typing import TYPE_CHECKING

from spaces.lazy import attach

if TYPE_CHECKING:
    from runners.base import RUNNERS, AskTell, Evaluator, Runner, RunnerError
    from runners.config import DataConfig, LatencyConfig, RunnerConfig, TrainConfig
    from runners.data.loading import DATASETS, ImageData, load_data
    from runners.data.splits import DataError, Split
    from runners.evaluation.context import SearchContext
    from runners.evaluation.evaluate import EvaluationError, evaluate
    from runners.local import LocalRunner
    from runners.ray.runner import RayRunner
    from runners.simulated.runner import SimulatedRunner
    from runners.training.dense import given_net, load_weights, trained_net
    from runners.training.loop import fit
    from runners.training.run import TrainingError, TrainingRun
    from runners.training.scoring import accuracy, reestimate_batchnorm, score
    from runners.training.task import Task, TaskError
    from runners.trial import EpochReport, TrainingSegment, Trial, TrialResult, TrialState

__all__ = [
    "DATASETS",
    "RUNNERS",
    "AskTell",
    "DataConfig",
    "DataError",
    "EpochReport",
    "EvaluationError",
    "Evaluator",
    "ImageData",
    "LatencyConfig",
    "LocalRunner",
    "RayRunner",
    "Runner",
    "RunnerConfig",
    "RunnerError",
    "SearchContext",
    "SimulatedRunner",
    "Split",
    "Task",
    "TaskError",
    "TrainConfig",
    "TrainingError",
    "TrainingRun",
    "TrainingSegment",
    "Trial",
    "TrialResult",
    "TrialState",
    "accuracy",
    "evaluate",
    "fit",
    "given_net",
    "load_data",
    "load_weights",
    "reestimate_batchnorm",
    "score",
    "trained_net",
]

_HOMES = {
    **dict.fromkeys(("RUNNERS", "AskTell", "Evaluator", "Runner", "RunnerError"), "runners.base"),
    **dict.fromkeys(("DataConfig", "LatencyConfig", "RunnerConfig", "TrainConfig"), "runners.config"),
    **dict.fromkeys(("DATASETS", "ImageData", "load_data"), "runners.data.loading"),
    **dict.fromkeys(("DataError", "Split"), "runners.data.splits"),
    "SearchContext": "runners.evaluation.context",
    **dict.fromkeys(("EvaluationError", "evaluate"), "runners.evaluation.evaluate"),
    "LocalRunner": "runners.local",
    "RayRunner": "runners.ray.runner",
    "SimulatedRunner": "runners.simulated.runner",
    **dict.fromkeys(("given_net", "load_weights", "trained_net"), "runners.training.dense"),
    "fit": "runners.training.loop",
    **dict.fromkeys(("TrainingError", "TrainingRun"), "runners.training.run"),
    **dict.fromkeys(("accuracy", "reestimate_batchnorm", "score"), "runners.training.scoring"),
    **dict.fromkeys(("Task", "TaskError"), "runners.training.task"),
    **dict.fromkeys(("EpochReport", "TrainingSegment", "Trial", "TrialResult", "TrialState"), "runners.trial"),
}

__getattr__, __dir__ = attach(__name__, _HOMES)
