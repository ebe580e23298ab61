"""Environment: the data, network, device and run folder of a search, made from its config before any training.

This module writes no file, so that a mistake in the config leaves nothing behind.
"""

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from configs.loading import check_resumed
from configs.schema import RunConfig
from pruning.file_size import with_file_size
from pruning.formats import parse_formats
from pruning.quantization.static import check_int8
from runners.cache import cache_root
from runners.config import AUTO_DEVICE, NO_DEVICE
from runners.data.builtin import check_on_disk
from runners.data.loading import ImageData, load_data
from runners.data.splits import Split
from runners.latency.devices import check_device
from runners.latency.engines import LatencyError
from runners.latency.prediction.blocked import ALIGNED
from runners.learning_curve import LearningCurve
from runners.placement import pick_runner, workers
from runners.training.compute_format import ComputeFormat, StepTiming, time_steps
from runners.training.dense import DenseRecipe, cached_curve, cached_file, given_net, is_published
from runners.training.devices import pick_device
from runners.training.scoring import score, scores
from runners.training.task import LIKELIEST, Classification, Task, check_task, task_of
from runners.trial import TrialResult
from search.problem import Problem, for_task, needs_latency
from search.time_left import Work
from spaces.errors import SlimfrontError
from spaces.space import ModelSpec
from spaces.tracing.tracer import trace
from spaces.zoo.models import build, default_input_shape, published_file

LEAST_TIMEOUT, TIMEOUT_FACTOR = 600.0, 10.0  # seconds; of the forecast of a whole trial
LEARNED_IMAGES = 256  # training images by which it is judged whether the dense network has learned them
PACKAGES = ("slimfront", "torch", "torchvision", "timm", "optuna", "ray", "mlflow", "fvcore", "torch-pruning")
NOT_IN_PATHS = "?{}%"  # the stores of MLflow and Optuna take them for parts of an address


class RunFolderError(SlimfrontError):
    """A run folder that cannot be used."""


@dataclass(frozen=True)
class Environment:
    """The data, network, device and run folder of a search.

    Attributes:
        net: the network at full width, with the user's weights when `weighted`, else with random ones.
        workers: number of trials that run at once.
        threads: torch threads of a worker.
        steps: how training steps of the network were timed.
    """

    problem: Problem
    data: ImageData
    spec: ModelSpec
    net: nn.Module
    weighted: bool
    folder: Path
    device: torch.device
    runner: str
    workers: int
    threads: int
    steps: StepTiming

    @property
    def threads_alone(self) -> int:
        """Torch threads of this process while no trial runs."""
        return self.steps.threads_alone

    @property
    def compute_format(self) -> ComputeFormat:
        """Precision and memory format of the trials; the latter was measured with `threads` threads."""
        return self.steps.compute_format

    def score(self, net: nn.Module, split: Split, limit: int | None = None) -> float:
        """Return the score of a network on images, in the precision of the training; see `runners.training.scoring`."""
        return score(net, split, self.config.train, compute_format=self.compute_format, limit=limit)

    def top5(self, net: nn.Module, split: Split) -> float | None:
        """Return top-5 accuracy in the precision of the training; None for another task, or up to five classes."""
        if self.data.num_classes <= LIKELIEST or not isinstance(self.task, Classification):
            return None
        return scores(net, split, self.config.train, compute_format=self.compute_format).top5

    @property
    def task(self) -> Task:
        """What networks are trained for."""
        return task_of(self.config.train)

    @property
    def config(self) -> RunConfig:
        """The settings of the run."""
        return self.problem.config

    @property
    def dense_recipe(self) -> DenseRecipe:
        """How the dense network is trained here."""
        return DenseRecipe(self.spec, self.data, self.config.train, self.config.seed, self.compute_format)

    @property
    def dense_file(self) -> Path | None:
        """The file that caches the dense network once it is trained here; None when its weights are given."""
        return None if self.weighted else cached_file(self.dense_recipe, cache_root())

    @property
    def dense_curve(self) -> LearningCurve | None:
        """The learning curve of the dense network once it is trained here; None when its weights are given."""
        return None if self.weighted else cached_curve(self.dense_recipe, cache_root())


@dataclass(frozen=True)
class Plan:
    """A search with the time that it is expected to take.

    Attributes:
        seconds: wall time; None when it is not known.
        epochs: training of all trials together, when trials pause at rungs; else 0.
        dense_seconds: latency of the dense network, once measured.
        trial_seconds: for a whole trial that trains the dense network; None when it is not known.
        work: what its parts are expected to take.
    """

    environment: Environment
    seconds: float | None = None
    epochs: float = 0.0
    dense_seconds: float | None = None
    trial_seconds: float | None = None
    work: Work = Work()

    @property
    def trial_timeout(self) -> float:
        """Seconds that a trial may give no sign of life: as set, or what a forecast that errs tenfold still allows."""
        given = self.environment.config.trial_timeout_seconds
        return max(LEAST_TIMEOUT, TIMEOUT_FACTOR * (self.trial_seconds or 0.0)) if given is None else given

    @property
    def reference_cost(self) -> float:
        """Cost of the dense network along the axis of the front: FLOPs, or seconds; 0 for an unknown latency."""
        problem = self.environment.problem
        return (self.dense_seconds or 0.0) if problem.axis == "latency" else problem.space.dense_cost.flops

    def remaining(self, finished: Sequence[TrialResult], total: int) -> "Plan":
        """Return the plan with the time of the trials that have not finished.

        Args:
            finished: trials of an earlier process.
            total: number of trials of the whole search.
        """
        if self.seconds is None or not finished:
            return self
        share = max(0, total - len(finished)) / total
        epochs = max(0.0, self.epochs - sum(result.trained or 0 for result in finished))
        if self.epochs:  # finished trials may be trained on, so their number says little
            share = epochs / self.epochs
        return dataclasses.replace(self, seconds=self.seconds * share, epochs=epochs)


def prepare(config: RunConfig, *, fetch: bool = True) -> Environment:
    """Make the environment of a search from its config.

    Args:
        fetch: whether images and published weights that are not on disk are downloaded; otherwise missing images are an
            error, and random weights stand in for missing published ones.

    Raises:
        SlimfrontError: a setting that cannot be met; the message names it.
    """
    check_resumed(config)
    folder = _folder(config)
    _ = config.storage_address, config.tracking_address  # asks the environment for passwords
    device = pick_device(config.train.device)
    config = with_latency_device(config, device)
    check_device(config.latency)
    if config.export:
        parse_formats(config.export)
    if config.quantize:
        check_int8()
    if not fetch:
        check_on_disk(config.data)
    task = task_of(config.train)
    config = for_task(config, task)
    data = load_data(config.data, config.seed, default_input_shape(config.model), classifies=task.classifies)
    spec = ModelSpec(config.model, data.num_classes, data.input_shape, config.output, config.widen)
    net, weighted = build(spec).eval(), bool(config.weights)
    space = trace(net, torch.empty(1, *data.input_shape), config.space, spec, alignment_of(config))
    if config.size_format:
        space = with_file_size(space, net, config.size_format, spec)
    check_task(task, net, data.train)
    problem = Problem.resolve(config, space, task.classifies)
    if weighted and (fetch or file_to_download(spec, config.weights) is None):
        net = given_net(spec, config.weights)
    runner = pick_runner(config.runner, config.train.device)
    threads = torch.get_num_threads() if runner == "local" else config.runner.cpus_per_trial
    images_at_once = config.train.batch_size // config.train.accumulate
    count = workers(config.runner, config.train.device)
    beside = 1 if runner == "local" or config.runner.cluster else count
    return Environment(
        problem=problem,
        data=data,
        spec=spec,
        net=net,
        weighted=weighted,
        folder=folder,
        device=device,
        runner=runner,
        workers=count,
        threads=threads,
        steps=time_steps(net, data.input_shape, images_at_once, device, threads, config.train.precision, beside),
    )


def file_to_download(spec: ModelSpec, weights: str) -> Path | None:
    """Return the file that published weights will be downloaded to; None if it exists, or `weights` names a file."""
    file = published_file(spec, weights) if is_published(weights) else None
    return None if file is None or file.exists() else file


def with_latency_device(config: RunConfig, device: torch.device) -> RunConfig:
    """Return the config with the device of the training in place of an "auto" latency device.

    Raises:
        LatencyError: the search needs latency, and the latency device is "none".
    """
    if needs_latency(config, config.budgets) and not config.latency.measures:
        raise LatencyError(
            f"--latency-device {NO_DEVICE} measures nothing, and a latency budget or --objective accuracy,latency "
            "needs what networks measure; leave it out, or name a device such as cpu:1thread"
        )
    if config.latency.device != AUTO_DEVICE or config.latency.external:
        return config
    found = {"cpu": "cpu:1thread", "cuda": f"cuda:{device.index or 0}"}.get(device.type, device.type)
    return dataclasses.replace(config, latency=dataclasses.replace(config.latency, device=found))


def alignment_of(config: RunConfig) -> int:
    """Return the default divisor of narrow groups: where ONNX Runtime decides, odd channels cost more than they bring.

    So the widths that methods find are on the fast side too, of which no prediction knows beforehand.
    """
    return ALIGNED if config.latency.on_onnxruntime and needs_latency(config, config.budgets) else 1


def _folder(config: RunConfig) -> Path:
    """Choose the run folder without making it.

    Raises:
        RunFolderError: the folder exists and is not empty, is no folder, or has a path that no store can have.
    """
    folder = Path(config.resume) if config.resume else _fresh_folder(config)
    path = str(folder.absolute())
    if found := [sign for sign in NOT_IN_PATHS if sign in path]:
        raise RunFolderError(
            f"run folder {path!r} has {found[0]!r} in its path, which the stores of Optuna and MLflow cannot have; "
            "give another with --out"
        )
    return folder


def _fresh_folder(config: RunConfig) -> Path:
    if config.out:
        folder = Path(config.out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunFolderError(f"run folder {config.out!r} exists and is not empty; give a fresh one with --out")
        return folder
    stem = f"{config.network}-{config.data.name}".replace("/", "_").replace(":", "_")
    base = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{stem}"
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def installed_versions() -> dict[str, str]:
    """Return the versions of the installed packages that the results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
