"""Trainings of several studies: dense networks, arms (methods used once) and peers (other libraries).

They run in worker processes of one thread each. `small_cells.py` holds their networks and image sets.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peers
import torch
from torch import nn

from pruning.base import METHODS, Goal
from pruning.checkpoint import from_bytes
from pruning.methods.common_steps import finetune, uniform_widths
from runners.cache import cache_root
from runners.config import DataConfig, TrainConfig
from runners.data.loading import ImageData, load_data
from runners.evaluation.context import SearchContext, TrialContext
from runners.evaluation.evaluate import evaluate
from runners.training.compute_format import ComputeFormat, measure_compute_format
from runners.training.dense import DenseRecipe, trained_net
from runners.training.scoring import accuracy
from runners.trial import Trial, TrialResult, derive_seed
from spaces.budget import Budget
from spaces.counting import count_cost
from spaces.space import ModelSpec
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

CPU = torch.device("cpu")
CLASSES = 10  # of the network on which the compute format is measured
BATCH = 64


@dataclass(frozen=True)
class Network:
    """A network of the study: its name for `--model`, the side of its images in pixels, and its dense training."""

    model: str
    side: int
    dense_epochs: int
    dense_rate: float


NETWORKS = {
    "resnet20": Network("resnet20", 32, 60, 0.1),
    "vgg16_bn": Network("small_cells:slim_vgg16_bn", 32, 60, 0.1),
    "mobilenet_v2": Network("mobilenet_v2", 64, 60, 0.1),
}


@dataclass(frozen=True, eq=False)
class Arm:
    """A method used once with some settings; `finds` says that it chooses the widths, which are uniform otherwise."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    finds: bool = False


ARMS = {
    "l2, uniform": Arm("l2"),
    "l2, compensated": Arm("l2", {"compensate": True}),
    "aofp, uniform": Arm("aofp"),
    "aofp, own widths": Arm("aofp", finds=True),
    "di, uniform": Arm("di"),
    "di, own widths": Arm("di", finds=True),
    "csgd, uniform": Arm("csgd"),
    "abfp, uniform": Arm("abfp"),
    "kse": Arm("kse", finds=True),
    "l2, global widths": Arm("l2", {"allocation": "global"}, finds=True),
    "l1, uniform": Arm("l1"),
    "geometric median, uniform": Arm("geometric_median"),
    "BatchNorm scale, uniform": Arm("bn_scale"),
    "taylor, uniform": Arm("taylor"),
    "feature rank, uniform": Arm("feature_rank"),
    "chip, uniform": Arm("chip"),
    "random, uniform": Arm("random"),
    "scratch, uniform": Arm("scratch"),
}


@dataclass(frozen=True)
class Setup:
    """What all trainings share.

    Attributes:
        images: training images of a set, validation included.
        dense_epochs: replaces that of every network; 0 keeps them.
        folder: where the cuts of peers are kept.
    """

    images: int
    dense_epochs: int
    folder: Path

    def recipe(self, cell: str, seed: int) -> DenseRecipe:
        """Return the recipe of the dense network of a seed; the recipe holds the images too."""
        network = NETWORKS[network_of(cell)]
        data = load_data(DataConfig(name=self.data_name(cell), image_size=network.side), seed)
        train = TrainConfig(
            dense_epochs=self.dense_epochs or network.dense_epochs,
            dense_lr=network.dense_rate,
            batch_size=BATCH,
            device="cpu",
        )
        return DenseRecipe(ModelSpec(network.model, data.num_classes, data.input_shape), data, train, seed)

    def data_name(self, cell: str) -> str:
        return f"small_cells:{cell.partition('/')[2]}_{self.images}"


def network_of(cell: str) -> str:
    return cell.partition("/")[0]


@dataclass(frozen=True)
class Dense:
    """The training of a dense network."""

    cell: str
    seed: int


@dataclass(frozen=True)
class Run:
    """One training of an arm or a peer at a target, from the dense network."""

    cell: str
    arm: str
    target: float
    epochs: int
    rate: float
    seed: int


_shared: list[tuple[Setup, ComputeFormat]] = []  # of a worker process, whose runs are all of one cell


def start(setup: Setup, compute_format: ComputeFormat) -> None:
    torch.set_num_threads(1)
    _shared.append((setup, compute_format))


def measure(job: Dense | Run) -> dict[str, Any]:
    """Train the network of a job, and return plain numbers, or the `error` of a failed one."""
    began = time.perf_counter()
    try:
        values = train_dense(job) if isinstance(job, Dense) else train_run(job)
    except Exception as error:  # a peer may fail in any way
        values = {"error": f"{type(error).__name__}: {error}"}
    return {**values, "seconds": time.perf_counter() - began}


def train_dense(job: Dense) -> dict[str, Any]:
    """Train the dense network of a seed, or read it from the cache, which has no `curve`."""
    setup, compute_format = _shared[0]
    recipe, curve = dataclasses.replace(setup.recipe(job.cell, job.seed), compute_format=compute_format), []
    net = trained_net(recipe, cache_root(), on_epoch=lambda _, reached: curve.append(reached))
    return {**measured(net, recipe.data), "curve": curve}


def measured(net: nn.Module, data: ImageData) -> dict[str, Any]:
    """Return the accuracies and the counted FLOPs of a trained network."""
    reached = {name: accuracy(net, split, device=CPU) for name, split in (("val", data.val), ("test", data.test))}
    return {**reached, "flops": count_cost(net, data.input_shape).flops, "error": ""}


@functools.lru_cache(maxsize=1)  # the runs come seed by seed
def context_of(cell: str, seed: int) -> SearchContext:
    """Return the data and the dense network of a seed."""
    setup, compute_format = _shared[0]
    recipe = dataclasses.replace(setup.recipe(cell, seed), compute_format=compute_format)
    net = trained_net(recipe, cache_root())
    space = trace(net, torch.zeros(1, *recipe.data.input_shape))
    return SearchContext(net, space, recipe.data, recipe.train, threads=1, compute_format=compute_format)


@functools.lru_cache(maxsize=2)
def prepared(name: str, cell: str, seed: int) -> Any:
    """Return the statistics of the dense network that all runs of an arm share."""
    context = context_of(cell, seed)
    trial_context = TrialContext(context.data, context.train, seed, compute_format=context.compute_format)
    arm = ARMS[name]
    return METHODS[arm.method](**arm.settings).prepare(context.net, context.space, trial_context)


def train_run(job: Run) -> dict[str, Any]:
    context = context_of(job.cell, job.seed)
    train = dataclasses.replace(context.train, epochs=job.epochs, lr=job.rate)
    context = dataclasses.replace(context, train=train)
    budget = Budget.parse(f"{job.target}%").resolve(context.space.dense_cost)
    seed = derive_seed(job.seed, f"{job.arm} {job.target} {job.epochs}")
    if job.arm not in ARMS:
        values = measured(by_peer(job, context, budget, seed), context.data)
    else:
        result = by_method(job, context, budget, seed)
        if result.checkpoint is None:
            raise RuntimeError(result.error)
        values = measured(from_bytes(result.checkpoint, context.net), context.data)
        values["flops"] = result.cost.flops if result.cost else values["flops"]
        if "latency_ratio" in result.note:
            values["latency_ratio"] = result.note["latency_ratio"]
    if values["flops"] > budget.limit:
        raise RuntimeError(f"{values['flops']:,} flops are above the {budget.limit:,} of the target")
    return values


def by_method(job: Run, context: SearchContext, budget: Budget, seed: int) -> TrialResult:
    """Run the arm of a job to its end in this process."""
    arm = ARMS[job.arm]
    widths = None if arm.finds else uniform_widths(context.space, Goal(budgets=(budget,)))
    shared = {arm.method: prepared(job.arm, job.cell, job.seed)}
    trial = Trial(0, arm.method, Goal(widths, (budget,)), arm.settings, seed)
    return evaluated(trial, dataclasses.replace(context, prepared=shared))


def evaluated(trial: Trial, search_context: SearchContext) -> TrialResult:
    """Run a trial to its end in this process."""
    running = evaluate(trial, search_context)
    try:
        while True:
            next(running)
    except StopIteration as end:
        result: TrialResult = end.value
        return result


def by_peer(job: Run, context: SearchContext, budget: Budget, seed: int) -> nn.Module:
    """Train the cut of a peer, which is kept in a file so that trainings of several lengths share it."""
    folder = _shared[0][0].folder / "cuts" / f"{job.cell.replace('/', '-')}-seed{job.seed}"
    file = folder / f"{job.arm}-{job.target:g}.pt"
    if file.is_file():
        net = torch.load(file, weights_only=False)
    else:
        net = peers.cut(job.arm, context.net, context.data, int(budget.limit), folder / "fastnas.pth")
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(net, file)
    trial_context = TrialContext(context.data, context.train, seed, compute_format=context.compute_format)
    *_, last = finetune(net, {}, trial_context)
    return last.net


def format_of(network: str) -> ComputeFormat:
    """Return the fastest format of a network for all processes, as each might measure another."""
    shape = (3, NETWORKS[network].side, NETWORKS[network].side)
    return measure_compute_format(build(ModelSpec(NETWORKS[network].model, CLASSES, shape)), shape, BATCH, CPU)
