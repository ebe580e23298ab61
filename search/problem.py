"""Everything a search stands on, made from its config before any work: data, space, budgets, run folder.

Nothing is written here, so that a mistake in the config leaves nothing behind.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from configs.loading import check_resumed
from configs.schema import RunConfig
from runners.cache import cache_root
from runners.data.builtin import check_on_disk
from runners.data.loading import ImageData, load_data
from runners.latency.engines import check as check_latency
from runners.placement import pick_runner, workers
from runners.training.compute_format import ComputeFormat, fastest_threads, measure_compute_format, using_threads
from runners.training.dense import DenseRecipe, cached_file, given_net, is_published
from runners.training.loop import pick_device
from search.latency.predictor import with_latency_device
from search.searchers.allocation import check_allocation
from search.searchers.candidate_space import CandidateSpace
from search.searchers.initial_design import SENSITIVE_FROM
from search.searchers.samplers import STRUCTURED
from search.searchers.sensitivities import images_for
from search.searchers.study_settings import StudySettings
from spaces.budget import Budget
from spaces.errors import SlimfrontError
from spaces.space import ModelSpec, SearchSpace
from spaces.tracing.tracer import trace
from spaces.zoo.models import build, default_input_shape, published_file

if TYPE_CHECKING:
    from search.latency.calibration import LatencyTools

STEP_IMAGES = 16  # of the training step that is timed


class RunFolderError(SlimfrontError):
    """A run folder that cannot be used."""


@dataclass(frozen=True)
class Setup:
    """What is known before any work.

    Attributes:
        net: at full width; its weights are the user's when `weighted`, else fresh.
        budgets: absolute.
        targets: absolute, the largest first; none unless asked for.
        workers: trials that run at once.
        threads: of each worker.
        threads_alone: of this process while no trial runs.
        fast: how trials compute, measured with as many threads as they get.
        fixed: method -> setting -> value, as `--set` gave them.
        latency: once measured, of a search that limits or compares it.
    """

    config: RunConfig
    data: ImageData
    spec: ModelSpec
    net: nn.Module
    weighted: bool
    space: SearchSpace
    budgets: tuple[Budget, ...]
    targets: tuple[Budget, ...]
    folder: Path
    device: torch.device
    runner: str
    workers: int
    threads: int
    threads_alone: int
    compute_format: ComputeFormat
    fixed: Mapping[str, Mapping[str, Any]]
    latency: "LatencyTools | None" = None


def prepare(config: RunConfig, *, fetch: bool = True) -> Setup:
    """Read the config and build what it names.

    Args:
        fetch: whether images and published weights that are not on disk are downloaded; otherwise such images are an
            error, and in place of such weights stand random ones.

    Raises:
        SlimfrontError: anything in the config that cannot be met; the message names it.
    """
    check_resumed(config)
    texts = config.budgets
    check_allocation(config.methods, config.allocation)
    device = pick_device(config.train.device)
    config = with_latency_device(config, texts, device)
    check_latency(config.latency)
    data = _images(config, fetch)
    spec = ModelSpec(config.model, data.num_classes, data.input_shape)
    folder = _folder(config)
    net, weighted = build(spec).eval(), bool(config.weights)
    space = trace(net, torch.empty(1, *data.input_shape), config.space, spec)
    budgets = tuple(budget.resolve(space.dense_cost) for budget in texts)
    candidates = CandidateSpace(_asked(config), space, budgets)
    if weighted and (fetch or file_to_download(spec, config.weights) is None):
        net = given_net(spec, config.weights)
    runner = pick_runner(config.runner, config.train.device)
    threads = torch.get_num_threads() if runner == "local" else config.runner.cpus_per_trial
    compute_format = _compute_format(config, net, data, threads)
    images = torch.rand(STEP_IMAGES, *data.input_shape, device=device)
    return Setup(
        config=config,
        data=data,
        spec=spec,
        net=net,
        weighted=weighted,
        space=space,
        budgets=budgets,
        targets=candidates.targets,
        folder=folder,
        device=device,
        runner=runner,
        workers=workers(config.runner, config.train.device),
        threads=threads,
        threads_alone=fastest_threads(net, images, compute_format),
        compute_format=compute_format,
        fixed=candidates.fixed,
    )


def _asked(config: RunConfig) -> StudySettings:
    """Return of the study's settings what tells whether there are candidates at all."""
    return StudySettings(
        config.methods,
        config.fixed_settings,
        lowest_fraction=config.lowest_fraction,
        allocation=config.allocation,
        targets=config.target_budgets,
    )


def _compute_format(config: RunConfig, net: nn.Module, data: ImageData, threads: int) -> ComputeFormat:
    """Find out how trials compute fastest, unless their precision is set."""
    if config.train.precision != "auto":
        return ComputeFormat()
    with using_threads(threads):
        return measure_compute_format(net, data.input_shape, config.train.batch_size, pick_device(config.train.device))


def screened_at_once(setup: Setup) -> int:
    """Return how many candidates are compared before training for each that is trained; 1 for none."""
    config, data = setup.config, setup.data
    return config.screening_pool_size(len(data.train), len(data.val))


def study_settings(setup: Setup) -> StudySettings:
    """Return what the study needs of the config."""
    config = setup.config
    return StudySettings(
        methods=config.methods,
        fixed=setup.fixed,
        trials=config.trials,
        sampler=config.sampler,
        seed=config.seed,
        lowest_fraction=config.lowest_fraction,
        allocation=config.allocation,
        storage=config.storage or f"sqlite:///{(setup.folder / 'study.db').resolve()}",
        name="slimfront" if not config.storage else Path(config.out or setup.folder).name,
        resumed=bool(config.resume),
        guide=setup.latency.guide if setup.latency else None,
        axis=config.axis,
        targets=setup.targets,
        training=config.searched_training,
        rungs=config.rung_epochs,
    )


def sensing_images(setup: Setup) -> int:
    """Return on how many training images the groups' sensitivities are measured; 0 where nothing would use them."""
    config = setup.config
    searched = config.sampler in STRUCTURED and config.allocation != "method" and len(setup.space.variable) > 1
    return images_for(setup.space, len(setup.data.train)) if searched and config.trials >= SENSITIVE_FROM else 0


def _images(config: RunConfig, fetch: bool) -> ImageData:
    wanted = default_input_shape(config.model)
    if not fetch:
        check_on_disk(config.data)
    return load_data(config.data, config.seed, wanted)


def _folder(config: RunConfig) -> Path:
    """Choose the run folder without making it.

    Raises:
        RunFolderError: the folder exists and is not empty, or is no folder.
    """
    if config.resume:
        return Path(config.resume)
    if config.out:
        folder = Path(config.out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunFolderError(f"run folder {config.out!r} exists and is not empty; give a fresh one with --out")
        return folder
    stem = f"{config.model}-{config.data.name}".replace("/", "_").replace(":", "_")
    base = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{stem}"
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def file_to_download(spec: ModelSpec, weights: str) -> Path | None:
    """Return the file that published weights will be downloaded to; None when they are there, or a file is given."""
    file = published_file(spec, weights) if is_published(weights) else None
    return None if file is None or file.exists() else file


def dense_file(setup: Setup) -> Path | None:
    """Return where the dense network is cached once it is trained here; None when its weights are given."""
    recipe = DenseRecipe(setup.spec, setup.data, setup.config.train, setup.config.seed)
    return None if setup.weighted else cached_file(recipe, cache_root())
