"""Fronts at equal training: python tests/studies/fronts.py, under 2 hours on two cores, resumable.

ResNet-20 on cluttered_digits, the best networks at 50%, 20% and 8% of its FLOPs, each found by a search of its own
(`python -m search --targets 50,20,8% --sampler ...`), once as is the default, with our sampler, screening and, from
three epochs on, rungs, and once with each of the others, which train every candidate to the end. All searches take
channels by the same method. The default goes first, and the others get as many trials as its training, in epochs over
the training images, pays for, rounded up; what it compares before any training is in the minutes only. The same
training is also spent on uniform widths alone, in one long fine-tuning per target. Beside them stand, for the same
training of the final network, uniform widths with as much as a single candidate gets, and the widths that the default
found, trained again from the dense net for as long as the uniform ones.

Every seed has a split, a dense net and searches of its own; training the dense net is not counted. The best network at
a target is chosen on validation and read on test once. Hypervolume is the mean, over all budgets up to that of the
dense net, of the accuracy of the best network inside it. Searches that were stopped go on (`--resume`), and finished
ones are read from their folders.
"""

import argparse
import dataclasses
import functools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from configs.loading import parse_flags
from pruning import checkpoint
from pruning.base import METHODS, Goal
from runners.cache import cache_root
from runners.config import RunnerConfig
from runners.evaluation.evaluate import SearchContext, TrialContext, evaluate
from runners.ray.runner import RayRunner
from runners.training.dense import DenseRecipe, trained_net
from runners.training.loop import accuracy
from runners.trial import EpochReport, Trial, TrialResult, derive_seed
from search.problem import Setup, prepare
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
DENSE = ("--dense-epochs", "10", "--dense-learning-rate", "0.1")


@dataclass(frozen=True)
class Options:
    """What all runs share."""

    targets: tuple[float, ...]  # percent of the dense FLOPs, falling
    epochs: int
    trials: int  # of the default's search
    method: str
    learning_rate: float
    folder: Path

    def flags(self, seed: int) -> list[str]:
        texts = ["--model", "resnet20", "--data", "cluttered_digits", "--method", self.method, "--seed", str(seed)]
        texts += ["--targets", ",".join(f"{each:g}" for each in self.targets) + "%", "--epochs", str(self.epochs)]
        return [*texts, "--lr", f"{self.learning_rate:g}", "--batch-size", "64", "--latency-device", "none", *DENSE]


@dataclass(frozen=True)
class Outcome:
    """What one search, or uniform widths, came to.

    Attributes:
        val, test: target -> accuracy in [0, 1] of the network that validation chooses there.
        areas: hypervolume on validation, and on test of the same networks.
        epochs: of training in all.
        minutes: that the search took, or the trainings.
    """

    val: Mapping[float, float]
    test: Mapping[float, float]
    areas: tuple[float, float]
    epochs: float
    minutes: float


def search(name: str, trials: int, seed: int, options: Options) -> SearchResult:
    """Search, or go on where a search was stopped, or read what it found."""
    folder = options.folder / f"seed{seed}-{name}"
    file = folder / "result.json"
    if file.is_file() and not (found := SearchResult.from_json(file.read_text())).interrupted:
        return found
    command = [sys.executable, "-m", "search", *options.flags(seed), *SEARCHES[name], "--trials", str(trials)]
    command += ["--out", str(folder)]
    if (folder / "config.yaml").is_file():
        command = [sys.executable, "-m", "search", "--resume", str(folder)]
    with (options.folder / f"seed{seed}-{name}.log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)
    return SearchResult.from_json(file.read_text())


def trained_epochs(result: SearchResult) -> float:
    """Return how many epochs all trials of a search have trained; a failed one counts whole."""
    whole = int(result.config["train"]["epochs"])
    return float(sum(each.curve[-1].epoch if each.curve else whole for each in result.results))


def outcome_of(result: SearchResult, options: Options) -> Outcome:
    networks = inside(result.results, result.budgets)
    found = outcome(networks, result.dense.cost.flops, options)
    return dataclasses.replace(found, epochs=trained_epochs(result), minutes=result.seconds / 60)


def outcome(networks: Sequence[TrialResult], dense: int, options: Options) -> Outcome:
    """Judge networks, training and time left aside; those that validation chooses have been read on test."""
    front = ParetoFront(tuple(networks))
    val, test = {}, {}
    for target in options.targets:
        best = front.best((Budget("flops", math.floor(target / 100 * dense)),))
        if best is None or best.test_accuracy is None or best.accuracy is None:
            raise SystemExit(f"no network at {target:g}% has been read on test")
        val[target], test[target] = best.accuracy, best.test_accuracy
    flops = [*(objectives(member)[0] for member in front), dense]
    read = [member.test_accuracy or 0.0 for member in front]
    on_test = sum((b - a) / dense * each for a, b, each in zip(flops, flops[1:], read, strict=False))
    areas = (front.hypervolume(dense), on_test)
    return Outcome(val, test, areas, 0.0, 0.0)


@dataclass
class Queue:
    """Hands given trials to a runner and reads their networks on test (implements `runners.AskTell`)."""

    waiting: list[Trial]
    setup: Setup
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
        test = accuracy(net, self.setup.data.test, device=self.setup.device)
        self.told.append(dataclasses.replace(result.with_checkpoints({}), intermediate_networks=(), test_accuracy=test))


def uniform(method: str, epochs: int, seed: int, options: Options) -> Outcome:
    """Train uniform widths at every target, or read what was trained."""
    space = search_context(seed, options)[1].space
    widths = [space.fit(uniform_ratios(space), (budget_of(target, space),)) for target in options.targets]
    return trained("uniform", method, widths, epochs, seed, options)


def searched(result: SearchResult, epochs: int, seed: int, options: Options) -> Outcome:
    """Train the widths that a search found best at every target from the dense net again, or read what was trained."""
    space, front = search_context(seed, options)[1].space, ParetoFront(tuple(inside(result.results, result.budgets)))
    best = [front.best((budget_of(target, space),)) for target in options.targets]
    widths = [each.widths for each in best if each is not None and each.widths is not None]
    return trained("searched", options.method, widths, epochs, seed, options)


def budget_of(target: float, space: SearchSpace) -> Budget:
    return Budget.parse(f"{target}%").resolve(space.dense_cost)


def trained(name: str, method: str, widths: Sequence[Widths], epochs: int, seed: int, options: Options) -> Outcome:
    """Train a network of given widths for every target, or read what was trained."""
    file = options.folder / f"seed{seed}-{name}-{method}-{epochs}.json"
    if file.is_file():
        return read_outcome(file)
    setup, search_context = search_context(seed, options)
    train = dataclasses.replace(search_context.train, epochs=epochs)
    context = TrialContext(search_context.data, train, seed, compute_format=search_context.compute_format)
    statistics_of = {method: METHODS[method]().prepare(search_context.net, search_context.space, context)}
    search_context = dataclasses.replace(search_context, train=train, statistics=statistics_of)
    trials = []
    for number, (target, each) in enumerate(zip(options.targets, widths, strict=True)):
        goal = Goal(each, (budget_of(target, search_context.space),))
        trials.append(Trial(number, method, goal, seed=derive_seed(seed, f"{name} {method} {target} {epochs}")))
    queue = Queue(trials, setup, search_context.net)
    began = time.perf_counter()
    RayRunner(RunnerConfig(), evaluate).run(queue, search_context)
    found = outcome(queue.told, search_context.space.dense_cost.flops, options)
    minutes = (time.perf_counter() - began) / 60
    found = dataclasses.replace(found, epochs=float(epochs * len(options.targets)), minutes=minutes)
    file.write_text(json.dumps(dataclasses.asdict(found)))
    return found


def read_outcome(file: Path) -> Outcome:
    plain = json.loads(file.read_text())
    per_target = {name: {float(target): each for target, each in plain[name].items()} for name in ("val", "test")}
    return Outcome(**{**plain, **per_target, "areas": tuple(plain["areas"])})


@functools.cache
def search_context(seed: int, options: Options) -> tuple[Setup, SearchContext]:
    """Return what the trials of a seed share: its images and its dense net, the ones that its searches use."""
    setup = prepare(parse_flags([*options.flags(seed), "--out", str(options.folder / "unused")]))
    recipe = DenseRecipe(setup.spec, setup.data, setup.config.train, seed)
    net = trained_net(recipe, cache_root(), compute_format=setup.compute_format)
    return setup, SearchContext(
        net.cpu().eval(),
        setup.space,
        setup.data,
        setup.config.train,
        {},
        threads=1,
        compute_format=setup.compute_format,
    )


def rows_of(seed: int, options: Options) -> dict[str, Outcome]:
    """Run everything of one seed, the default first: its training is what the others get."""
    rows = {}
    ours = search(DEFAULT, options.trials, seed, options)
    rows["our default"] = outcome_of(ours, options)
    spent = rows["our default"].epochs
    print(f"seed {seed}: the default trained {len(ours.results)} candidates, {spent:g} epochs", flush=True)
    for name in SEARCHES:
        if name != DEFAULT:
            rows[name] = outcome_of(search(name, math.ceil(spent / options.epochs), seed, options), options)
            print(f"seed {seed}: {name}: {rows[name]}", flush=True)
    long = math.ceil(spent / len(options.targets))
    rows[f"uniform {options.method}, one long training"] = uniform(options.method, long, seed, options)
    again = searched(ours, long, seed, options)
    rows["our default's widths, trained as long"] = dataclasses.replace(again, epochs=spent + again.epochs)
    for method in dict.fromkeys((options.method, "l2")):
        rows[f"uniform {method}, as long as a candidate"] = uniform(method, options.epochs, seed, options)
    return rows


def print_table(per_seed: Sequence[Mapping[str, Outcome]], options: Options) -> None:
    """Print a line per row: means and deviations over the seeds, and the lead of the default over each row."""
    last = options.targets[-1]
    names = [f"test at {target:g}%" for target in options.targets]
    head = ["", *names, "validation", "hypervolume, val", "test", "epochs", "minutes", f"default leads at {last:g}%"]
    print(f"\nTest accuracy in %, mean ± deviation over {len(per_seed)} seeds; leads in points ± standard error,")
    print("paired by seed.\n\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in per_seed[0]:
        found = [rows[row] for rows in per_seed]
        entries = [spread([100 * each.test[target] for each in found], 1) for target in options.targets]
        means = [statistics.fmean(100 * each.val[target] for each in found) for target in options.targets]
        entries += [" / ".join(f"{mean:.1f}" for mean in means)]
        entries += [spread([each.areas[kind] for each in found], 4) for kind in (0, 1)]
        entries += [f"{statistics.fmean(each.epochs for each in found):.0f}"]
        entries += [f"{statistics.fmean(each.minutes for each in found):.1f}"]
        leads = [100 * (rows["our default"].test[last] - rows[row].test[last]) for rows in per_seed]
        error = statistics.stdev(leads) / len(leads) ** 0.5 if len(leads) > 1 else float("nan")
        entries += ["" if row == "our default" else f"{statistics.fmean(leads):+.1f} ± {error:.1f}"]
        print(f"| {row} | " + " | ".join(entries) + " |")


def spread(values: Sequence[float], digits: int) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
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
    targets = tuple(sorted((float(each) for each in chosen.targets.split(",")), reverse=True))
    recipe = f"{chosen.method}-{chosen.epochs}epochs-{chosen.trials}trials-{chosen.learning_rate:g}"
    folder = (chosen.out or cache_root() / "benchmarks" / "fronts") / recipe
    folder.mkdir(parents=True, exist_ok=True)
    options = Options(targets, chosen.epochs, chosen.trials, chosen.method, chosen.learning_rate, folder)
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    print_table([rows_of(seed, options) for seed in seeds], options)


if __name__ == "__main__":
    main()
