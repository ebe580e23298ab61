"""Compare samplers over the groups of real networks, where the best front is known.

    python tests/studies/samplers.py

Traces ResNet-50 (37 groups) and DenseNet-121 (120 groups), and searches their widths under half of the dense FLOPs
with a closed form in place of training (`runners.simulated.grouped_accuracy`): per seed, groups matter by a trend over depth, by
how many layers share them, by their share of the FLOPs and by chance, each of a sign and strength of its own. All
samplers get the same uniform control arms first. Printed is how much of what can be gained over these arms a search
has gained: 0% is the arms' hypervolume, 100% that of the known best front; as the mean over all trials (the area under
the curve of hypervolume against trials) and at some of them. Optuna's samplers are as Optuna makes them: they choose
the budget fractions too, which a search chooses for them otherwise. Nothing was tuned on these seeds.
"""

import argparse
import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from search.searchers.study_settings import StudySettings

from runners.simulated.grouped_accuracy import GroupedAccuracy
from runners.trial import TrialResult, TrialState
from search.results.pareto import objectives
from search.tuner import Study
from spaces.budget import Budget
from spaces.space import ModelSpec, SearchSpace
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

NETWORKS = ("resnet50", "densenet121")
SENSED = "structured, sensitivities"
SAMPLERS = ("structured", SENSED, "tpe", "nsga2", "gp", "random")
BUDGET = Budget.parse("50%")
NOISE_OF_SENSITIVITIES = 0.7  # of their logarithm: a factor of two either way
FIXED = {"l2": {"compensate": False, "allocation": "uniform"}}
LOWEST = 0.06  # share of the budget
GRID = 16  # budgets at which the best front is computed


@dataclass(frozen=True)
class Job:
    """One search."""

    network: str
    sampler: str
    seed: int
    trials: int
    scatter: float


@dataclass(frozen=True)
class Curve:
    """What a search gained over the arms, as shares of what can be, after every trial but the arms.

    Attributes:
        linear, logarithmic: hypervolumes over FLOPs and over log FLOPs.
        seconds: that a proposal took.
    """

    linear: Sequence[float]
    logarithmic: Sequence[float]
    seconds: float


@functools.cache
def space_of(network: str) -> SearchSpace:
    return trace(build(ModelSpec(network, 1000, (3, 224, 224))), torch.zeros(1, 3, 224, 224))


Scale = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def linear(flops: NDArray[np.float64]) -> NDArray[np.float64]:
    return flops


class Area:
    """Areas under the true accuracies of a search's best networks and under the known best front."""

    def __init__(self, truth: GroupedAccuracy, low: float, high: float) -> None:
        self._guess, self._low, self._high = truth.guess, low, high
        self._grid = np.geomspace(low, high, GRID)
        self._best = np.array([truth.best_at(each) for each in self._grid])

    def best(self, scale: Scale) -> float:
        return float(np.trapezoid(self._best, scale(self._grid)))

    def under(self, networks: Sequence[tuple[int, float]], scale: Scale) -> float:
        """Return the area under the staircase of (FLOPs, true accuracy), from the lowest to the highest budget."""
        networks = sorted(networks)
        costs = np.clip([cost for cost, _ in networks] + [self._high], self._low, self._high)
        reached = np.maximum.accumulate([accuracy for _, accuracy in networks])
        return float(
            (np.diff(scale(costs)) * reached).sum() + (scale(costs[:1]) - scale(self._grid[:1]))[0] * self._guess
        )


@functools.cache
def area_of(network: str, seed: int, high: int) -> Area:
    return Area(GroupedAccuracy.random(space_of(network), seed), LOWEST * high, high)


def search(job: Job) -> tuple[Job, Curve]:
    """Run one search to its end."""
    torch.set_num_threads(1)
    space = space_of(job.network)
    truth = GroupedAccuracy.random(space, job.seed, job.scatter)
    sampler = job.sampler.partition(",")[0]
    settings = StudySettings(
        ("l2",),
        FIXED,
        trials=job.trials,
        sampler=sampler,
        seed=job.seed,
        allocation="search",
        lowest_fraction=LOWEST,
        even=False,
    )
    study = Study(settings, space, (BUDGET,))
    if job.sampler == SENSED:
        random = np.random.default_rng(job.seed)
        study.learn_sensitivities(
            {name: each * random.lognormal(0.0, NOISE_OF_SENSITIVITIES) for name, each in truth.importance.items()}
        )
    began = time.perf_counter()
    while (trial := study.ask()) is not None:
        outcome = truth(trial)
        study.tell(TrialResult(trial, TrialState.COMPLETE, outcome.accuracy, outcome.cost, outcome.widths))
    seconds = (time.perf_counter() - began) / job.trials
    high = study.budgets[0].limit
    area = area_of(job.network, job.seed, high)
    baselines = sum(bool(each.trial.baseline) for each in study.results)
    networks = [(objectives(each)[0], truth.accuracy(each.widths or {})) for each in study.results]
    shares = []
    for scale in (linear, np.log):
        start, best = area.under(networks[:baselines], scale), area.best(scale)
        counts = range(baselines + 1, len(networks) + 1)
        shares.append([(area.under(networks[:count], scale) - start) / (best - start) for count in counts])
    return job, Curve(*shares, seconds)


def print_table(network: str, curves: dict[str, list[Curve]], trials: int) -> None:
    """Print a line per sampler, the largest area first."""
    groups, count = len(space_of(network).variable), len(next(iter(curves.values())))
    print(f"\n{network}, {groups} groups, {trials} trials, {count} seeds: gained of the way from the control arms to")
    print("the known best front, in %, mean ± standard deviation\n")
    marks = [mark for mark in (12, 24, 36, 48, 60, 96) if mark < trials] + [trials]
    print("| sampler | area under the curve | over log FLOPs | " + " | ".join(f"after {m}" for m in marks), end="")
    print(" | ms a proposal |")
    print("|---" * (len(marks) + 4) + "|")

    def spread(values: Sequence[float]) -> str:
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{100 * statistics.fmean(values):.1f} ± {100 * deviation:.1f}"

    def area(name: str) -> float:
        return statistics.fmean(statistics.fmean(each.linear) for each in curves[name])

    for name in sorted(curves, key=area, reverse=True):
        own = curves[name]
        cells = [spread([statistics.fmean(each.linear) for each in own])]
        cells.append(spread([statistics.fmean(each.logarithmic) for each in own]))
        for mark in marks:
            cells.append(f"{100 * statistics.fmean(each.linear[mark - trials - 1] for each in own):.1f}")
        cells.append(f"{1000 * statistics.fmean(each.seconds for each in own):.0f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--samplers", default=";".join(SAMPLERS), help="separated by semicolons")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--scatter", type=float, default=0.005, help="standard deviation of a measured accuracy")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(chosen.processes) as pool:
        for network in chosen.networks.split(","):
            curves: dict[str, list[Curve]] = {name: [] for name in chosen.samplers.split(";")}
            seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
            jobs = [Job(network, name, seed, chosen.trials, chosen.scatter) for seed in seeds for name in curves]
            for job, curve in pool.imap_unordered(search, jobs):
                curves[job.sampler].append(curve)
            print_table(network, curves, chosen.trials)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
