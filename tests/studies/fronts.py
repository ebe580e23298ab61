"""Fronts at equal training: python tests/studies/fronts.py, under 2 hours on two cores, resumable.

ResNet-20 on cluttered_digits: the best networks at 50%, 20% and 8% of its FLOPs. They are found by searches (`python -m
search --targets 50,20,8% --sampler ...`): one with the defaults, that is with our sampler, screening and, from three
epochs on, rungs; and one with each of the other samplers, which train every candidate to the end. All searches use the
same pruning method. The default runs first, and the others get as many trials as its training pays for (in epochs over
the training images, rounded up); what the default compares before any training counts in the minutes only. The same
training is also spent on uniform widths alone, in one long fine-tuning per target. Two controls train the final network
for the same time: uniform widths with as much training as a single candidate gets, and the widths that the default
found, trained again from the dense network for as long as the uniform ones.

Every seed has a data split, a dense network and searches of its own; training the dense network is not counted. The
best network at a target is chosen on validation and read on test once. Hypervolume is the mean, over all budgets up to
that of the dense network, of the accuracy of the best network inside it. Searches that were stopped are resumed
(`--resume`), and finished ones are read from their folders.
"""

import argparse
import dataclasses
import functools
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from harness import Rows, lead, print_table, rows_of, seeds_of, spread, study_parser

from configs.loading import parse_flags
from pruning import checkpoint
from pruning.base import METHODS, Goal
from runners.cache import cache_root
from runners.config import RunnerConfig
from runners.evaluation.context import SearchContext, TrialContext
from runners.evaluation.evaluate import evaluate
from runners.ray.runner import RayRunner
from runners.training.dense import trained_net
from runners.training.scoring import accuracy
from runners.trial import EpochReport, Trial, TrialResult, derive_seed
from search.environment import Environment, prepare
from search.results.pareto import ParetoFront, inside, objectives
from search.results.result import SearchResult
from spaces.budget import Budget
from spaces.space import SearchSpace, uniform_ratios
from spaces.widths import Widths

DEFAULT = "default"
SEARCHES: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    "tpe": ("--sampler", "tpe", "--rungs", "none", "--screen", "none"),
    "nsga2": ("--sampler", "nsga2", "--rungs", "none", "--screen", "none"),
    "random": ("--sampler", "random", "--rungs", "none", "--screen", "none"),
}
DENSE = ("--dense-epochs", "10", "--dense-lr", "0.1")


@dataclass(frozen=True)
class Options:
    """Settings that all runs share."""

    targets: tuple[float, ...]  # percent of the dense FLOPs, falling
    epochs: int
    trials: int  # of the default's search
    method: str
    learning_rate: float
    folder: Path  # of the searches

    def flags(self, seed: int) -> list[str]:
        texts = ["--model", "resnet20", "--data", "cluttered_digits", "--method", self.method, "--seed", str(seed)]
        texts += ["--targets", ",".join(f"{target:g}" for target in self.targets) + "%", "--epochs", str(self.epochs)]
        return [*texts, "--lr", f"{self.learning_rate:g}", "--batch-size", "64", "--latency-device", "none", *DENSE]


@dataclass(frozen=True)
class Outcome:
    """The result of one search, or of trainings of given widths.

    Attributes:
        val, test: target -> accuracy in [0, 1] of the network that validation chooses there.
        areas: hypervolume on validation, and on test of the same networks.
        epochs: epochs of training in all.
        minutes: duration of the search, or of the trainings.
    """

    val: Mapping[float, float]
    test: Mapping[float, float]
    areas: tuple[float, float]
    epochs: float
    minutes: float

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Outcome":
        per_target = {name: {float(target): value for target, value in row[name].items()} for name in ("val", "test")}
        return cls(**{**row, **per_target, "areas": tuple(row["areas"])})


@dataclass(frozen=True)
class Training:
    """Trainings of given widths, one for each target; `name` says where the widths come from."""

    name: str
    method: str
    epochs: int
    seed: int


def search(name: str, trials: int, seed: int, options: Options) -> SearchResult:
    flags = [*options.flags(seed), *SEARCHES[name], "--trials", str(trials)]
    return finished_search(options.folder / f"seed{seed}-{name}", flags)


def finished_search(folder: Path, flags: Sequence[str]) -> SearchResult:
    """Search, resume a search that was stopped, or read the result of a finished one; its log lies beside the folder.

    Args:
        folder: run folder of the search.
        flags: of the command line, without `--out`; they may name factories in modules of the studies.
    """
    file = folder / "result.json"
    if file.is_file() and not (found := SearchResult.from_json(file.read_text())).interrupted:
        return found
    command = [sys.executable, "-m", "search", *flags, "--out", str(folder)]
    if (folder / "config.yaml").is_file():
        command = [sys.executable, "-m", "search", "--resume", str(folder), "--trust-code"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    with folder.with_name(f"{folder.name}.log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path})
    return SearchResult.from_json(file.read_text())


def trained_epochs(result: SearchResult) -> float:
    """Return the number of epochs of all trials of a search; a failed trial counts in full."""
    whole = int(result.config["train"]["epochs"])
    return float(sum(trial.curve[-1].epoch if trial.curve else whole for trial in result.results))


def outcome_of(result: SearchResult, targets: Sequence[float]) -> Outcome:
    networks = inside(result.results, result.budgets)
    found = outcome(networks, result.dense.cost.flops, targets)
    best = {target: result.best_at(f"{target:g}%") for target in targets}  # as the report of the search answers
    val, test = {}, {}
    for target, network in best.items():
        if network is None or network.accuracy is None or network.test_accuracy is None:
            raise SystemExit(f"no network at {target:g}% has been read on test; run that search again")
        val[target], test[target] = network.accuracy, network.test_accuracy
    minutes = result.seconds / 60
    return dataclasses.replace(found, val=val, test=test, epochs=trained_epochs(result), minutes=minutes)


def outcome(networks: Sequence[TrialResult], dense: int, targets: Sequence[float]) -> Outcome:
    """Return the outcome of networks without training and time; those that validation chooses have a test accuracy."""
    front = ParetoFront(tuple(networks))
    val, test = {}, {}
    for target in targets:
        best = front.best((Budget("flops", math.floor(target / 100 * dense)),))
        if best is None or best.test_accuracy is None or best.accuracy is None:
            raise SystemExit(f"no network at {target:g}% has been read on test")
        val[target], test[target] = best.accuracy, best.test_accuracy
    flops = [*(objectives(member)[0] for member in front), dense]
    read = [member.test_accuracy or 0.0 for member in front]
    on_test = sum((b - a) / dense * reached for a, b, reached in zip(flops, flops[1:], read, strict=False))
    areas = (front.hypervolume(dense), on_test)
    return Outcome(val, test, areas, 0.0, 0.0)


@dataclass
class Queue:
    """Hands given trials to a runner and reads their networks on test (implements `runners.AskTell`)."""

    waiting: list[Trial]
    environment: Environment
    dense: torch.nn.Module
    told: list[TrialResult] = field(default_factory=list)

    def ask(self) -> Trial | None:
        return self.waiting.pop(0) if self.waiting else None

    def report(self, report: EpochReport) -> bool:
        return True

    def tell(self, result: TrialResult) -> None:
        if result.checkpoint is None:
            raise SystemExit(f"given widths failed: {result.error}")
        net = checkpoint.from_bytes(result.checkpoint, self.dense)
        test = accuracy(net, self.environment.data.test, device=self.environment.device)
        self.told.append(dataclasses.replace(result.with_checkpoints({}), intermediate_networks=(), test_accuracy=test))


def uniform(method: str, epochs: int, seed: int, options: Options, rows: Rows) -> Outcome:
    """Train uniform widths at every target, or read the outcome on file."""
    space = context_of(seed, options)[1].space
    widths = [space.fit(uniform_ratios(space), (budget_of(target, space),)) for target in options.targets]
    return trained(Training("uniform", method, epochs, seed), widths, options, rows)


def searched(result: SearchResult, epochs: int, seed: int, options: Options, rows: Rows) -> Outcome:
    """Train the best widths of a search at every target from the dense network again, or read the outcome on file."""
    space, front = context_of(seed, options)[1].space, ParetoFront(tuple(inside(result.results, result.budgets)))
    best = [front.best((budget_of(target, space),)) for target in options.targets]
    widths = [member.widths for member in best if member is not None and member.widths is not None]
    return trained(Training("searched", options.method, epochs, seed), widths, options, rows)


def budget_of(target: float, space: SearchSpace) -> Budget:
    return Budget.parse(f"{target}%").resolve(space.dense_cost)


def trained(job: Training, widths: Sequence[Widths], options: Options, rows: Rows) -> Outcome:
    """Train a network of given widths for every target, or read the outcome on file."""
    return Outcome.from_row(rows.measured(job, lambda: dataclasses.asdict(train_widths(job, widths, options))))


def train_widths(job: Training, widths: Sequence[Widths], options: Options) -> Outcome:
    environment, context = context_of(job.seed, options)
    train = dataclasses.replace(context.train, epochs=job.epochs)
    trial_context = TrialContext(context.data, train, job.seed, compute_format=context.compute_format)
    prepared = {job.method: METHODS[job.method]().prepare(context.net, context.space, trial_context)}
    trials = []
    for number, (target, target_widths) in enumerate(zip(options.targets, widths, strict=True)):
        goal = Goal(target_widths, (budget_of(target, context.space),))
        seed = derive_seed(job.seed, f"{job.name} {job.method} {target} {job.epochs}")
        trials.append(Trial(number, job.method, goal, seed=seed))
    queue = Queue(trials, environment, context.net)
    began = time.perf_counter()
    RayRunner(RunnerConfig(), evaluate).run(queue, dataclasses.replace(context, train=train, prepared=prepared))
    minutes = (time.perf_counter() - began) / 60
    found = outcome(queue.told, context.space.dense_cost.flops, options.targets)
    return dataclasses.replace(found, epochs=float(job.epochs * len(options.targets)), minutes=minutes)


@functools.cache
def context_of(seed: int, options: Options) -> tuple[Environment, SearchContext]:
    """Return the data and the dense network of a seed, which are those of its searches."""
    environment = prepare(parse_flags([*options.flags(seed), "--out", str(options.folder / "unused")]))
    net = trained_net(environment.dense_recipe, cache_root())
    return environment, SearchContext(
        net.cpu().eval(),
        environment.problem.space,
        environment.data,
        environment.config.train,
        {},
        threads=1,
        compute_format=environment.compute_format,
    )


def outcomes_of(seed: int, options: Options, rows: Rows) -> dict[str, Outcome]:
    """Run all lines of one seed, the default first, because the others get as much training."""
    outcomes = {}
    ours = search(DEFAULT, options.trials, seed, options)
    outcomes["our default"] = outcome_of(ours, options.targets)
    spent = outcomes["our default"].epochs
    print(f"seed {seed}: the default trained {len(ours.results)} candidates, {spent:g} epochs", flush=True)
    for name in SEARCHES:
        if name != DEFAULT:
            found = search(name, math.ceil(spent / options.epochs), seed, options)
            outcomes[name] = outcome_of(found, options.targets)
            print(f"seed {seed}: {name}: {outcomes[name]}", flush=True)
    long = math.ceil(spent / len(options.targets))
    outcomes[f"uniform {options.method}, one long training"] = uniform(options.method, long, seed, options, rows)
    again = searched(ours, long, seed, options, rows)
    outcomes["our default's widths, trained as long"] = dataclasses.replace(again, epochs=spent + again.epochs)
    for method in dict.fromkeys((options.method, "l2")):
        outcomes[f"uniform {method}, as long as a candidate"] = uniform(method, options.epochs, seed, options, rows)
    return outcomes


def print_results(per_seed: Sequence[Mapping[str, Outcome]], options: Options, seeds: range) -> None:
    """Print means and deviations over the seeds for every line, and the lead of the default over it."""
    last = options.targets[-1]
    lines = []
    for name in per_seed[0]:
        found = [outcomes[name] for outcomes in per_seed]
        entries = [name, *(spread([outcome.test[target] for outcome in found], 1, 100) for target in options.targets)]
        means = [statistics.fmean(100 * outcome.val[target] for outcome in found) for target in options.targets]
        entries += [" / ".join(f"{mean:.1f}" for mean in means)]
        entries += [spread([outcome.areas[kind] for outcome in found], 4) for kind in (0, 1)]
        entries += [f"{statistics.fmean(outcome.epochs for outcome in found):.0f}"]
        entries += [f"{statistics.fmean(outcome.minutes for outcome in found):.1f}"]
        ours = [outcomes["our default"].test[last] for outcomes in per_seed]
        entries += ["" if name == "our default" else lead(ours, [outcome.test[last] for outcome in found], 1, 100)]
        lines.append(entries)
    names = [f"test at {target:g}%" for target in options.targets]
    head = ["", *names, "validation", "hypervolume, val", "test", "epochs", "minutes", f"default leads at {last:g}%"]
    title = (
        "Test accuracy in %, mean ± standard deviation over the seeds; leads in points ± standard error, paired by seed"
    )
    print_table(title, head, lines, seeds)


def parsed() -> argparse.Namespace:
    parser = study_parser("fronts", __doc__, seeds=3)
    parser.add_argument("--targets", default="50,20,8", help="percent of the dense FLOPs")
    parser.add_argument("--epochs", type=int, default=2, help="of a candidate that is trained to the end")
    parser.add_argument("--trials", type=int, default=24, help="of the default's search")
    parser.add_argument("--method", default="di")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--out", type=Path, help="folder of the searches; default: in the cache folder")
    parser.add_argument("--quick", action="store_true", help="one seed, 6 trials of one epoch")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.seeds, chosen.epochs, chosen.trials = 1, 1, 6
    return chosen


def main() -> None:
    chosen = parsed()
    targets = tuple(sorted((float(target) for target in chosen.targets.split(",")), reverse=True))
    recipe = f"{chosen.method}-{chosen.epochs}epochs-{chosen.trials}trials-{chosen.learning_rate:g}"
    folder = (chosen.out or cache_root() / "studies" / "fronts") / recipe
    folder.mkdir(parents=True, exist_ok=True)
    options = Options(targets, chosen.epochs, chosen.trials, chosen.method, chosen.learning_rate, folder)
    rows = rows_of(chosen, recipe=recipe, targets=targets)
    print_results([outcomes_of(seed, options, rows) for seed in seeds_of(chosen)], options, seeds_of(chosen))


if __name__ == "__main__":
    main()
