"""Compare samplers over the groups of real networks, where the best front is known.

    python tests/studies/samplers.py

The study traces ResNet-50 (37 groups) and DenseNet-121 (120 groups), and searches their widths under half of the dense
FLOPs with a closed form in place of training (`runners.simulated.grouped_accuracy`). In each seed the importance of a
group depends on its depth, on the number of layers that share it, on its share of the FLOPs and on chance, and sign and
strength of each of these are drawn. All samplers get the same uniform baselines first. The tables show the part of the
possible gain over these baselines that a search has reached: 0% is the hypervolume of the baselines, 100% that of the
known best front; as the mean over all trials (the area under the curve of hypervolume against trials) and at some of
them. Optuna's samplers have Optuna's defaults and choose the budget fractions too, which a search otherwise chooses for
them. Nothing was tuned on these seeds. The same command continues a study that was stopped.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from harness import Rows, mean_of, print_table, rows_of, seeds_of, spread, study_parser
from numpy.typing import NDArray

from configs.schema import RunConfig
from runners.simulated.grouped_accuracy import GroupedAccuracy
from runners.trial import TrialResult, TrialState
from search.problem import Problem
from search.results.pareto import objectives
from search.schedulers.asha import MultiObjectiveASHA
from search.schedulers.final_training import FinalTraining
from search.schedulers.screening import Screening
from search.searchers.candidate_space import CandidateSpace
from search.searchers.optuna_searcher import OptunaSearcher
from search.storage.history import History
from search.storage.pending import PendingTrials
from search.tuner import Tuner
from spaces.space import ModelSpec, SearchSpace
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

NETWORKS = ("resnet50", "densenet121")
SENSED = "structured, sensitivities"
SAMPLERS = ("structured", SENSED, "tpe", "nsga2", "gp", "random")
BUDGET = "50%"
NOISE_OF_SENSITIVITIES = 0.7  # of their logarithm: a factor of two either way
FIXED = ("l2.compensate=false", "l2.allocation=uniform")
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
    """The gain of a search over the baselines, as shares of the possible gain, after each trial but the baselines.

    Attributes:
        linear, logarithmic: gains of hypervolume over FLOPs and over log FLOPs.
        seconds: mean time of a proposal.
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
        self._best = np.array([truth.best_at(budget) for budget in self._grid])

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


def config_of(job: Job) -> RunConfig:
    return RunConfig(
        budget=(BUDGET,),
        method="l2",
        set=FIXED,
        trials=job.trials,
        sampler=job.sampler.partition(",")[0],
        seed=job.seed,
        allocation="search",
        lowest_fraction=LOWEST,
        rungs="none",
        screen="none",
        final_epochs="none",
    )


def search(job: Job) -> dict[str, Any]:
    """Run one search to its end, and return its `Curve` as plain values."""
    torch.set_num_threads(1)
    space = space_of(job.network)
    truth = GroupedAccuracy.random(space, job.seed, job.scatter)
    problem = Problem.resolve(config_of(job), space)
    candidates, history, pending = CandidateSpace(problem), History(problem), PendingTrials()
    random = np.random.default_rng(job.seed)
    sensitivities = {
        name: value * random.lognormal(0.0, NOISE_OF_SENSITIVITIES) for name, value in truth.importance.items()
    }
    searcher = OptunaSearcher(
        candidates,
        history,
        pending,
        sensitivities=sensitivities if job.sampler == SENSED else None,
        even=False,
    )
    tuner = Tuner(
        history=history,
        pending=pending,
        searcher=searcher,
        scheduler=MultiObjectiveASHA(problem, candidates.objective_cost),
        final_training=FinalTraining(candidates, problem.config.final_training),
        screening=Screening(problem, size=1),
    )
    began = time.perf_counter()
    while (trial := tuner.ask()) is not None:
        outcome = truth(trial)
        tuner.tell(TrialResult(trial, TrialState.COMPLETE, outcome.accuracy, outcome.cost, outcome.widths))
    seconds = (time.perf_counter() - began) / job.trials
    high = problem.budgets[0].limit
    area = area_of(job.network, job.seed, high)
    baselines = sum(bool(result.trial.baseline) for result in history.results)
    networks = [(objectives(result)[0], truth.accuracy(result.widths or {})) for result in history.results]
    shares = []
    for scale in (linear, np.log):
        start, best = area.under(networks[:baselines], scale), area.best(scale)
        counts = range(baselines + 1, len(networks) + 1)
        shares.append([(area.under(networks[:count], scale) - start) / (best - start) for count in counts])
    return dataclasses.asdict(Curve(*shares, seconds))


def print_results(network: str, curves: Mapping[str, Sequence[Mapping[str, Any]]], trials: int, seeds: range) -> None:
    """Print a line per sampler, the largest area first."""
    baselines = trials - min(len(curve["linear"]) for rows in curves.values() for curve in rows)
    marks = [mark for mark in (12, 24, 36, 48, 60, 96, 200, 400, 600) if baselines < mark < trials] + [trials]

    def areas(name: str, scale: str) -> list[float]:
        return [statistics.fmean(curve[scale]) for curve in curves[name]]

    lines = []
    for name in sorted(curves, key=lambda name: -statistics.fmean(areas(name, "linear"))):
        cells = [name, *(spread(areas(name, scale), 1, 100) for scale in ("linear", "logarithmic"))]
        cells += [
            f"{100 * statistics.fmean(curve['linear'][mark - trials - 1] for curve in curves[name]):.1f}"
            for mark in marks
        ]
        lines.append([*cells, f"{1000 * mean_of(curves[name], 'seconds'):.0f}"])
    title = (
        f"{network}, {len(space_of(network).variable)} groups, {trials} trials: part of the way from the baselines to "
        "the known best front, in %, mean ± standard deviation over the seeds"
    )
    head = ["sampler", "area under the curve", "over log FLOPs", *(f"after {mark}" for mark in marks), "ms a proposal"]
    print_table(title, head, lines, seeds)


def main() -> None:
    parser = study_parser("samplers", __doc__, seeds=10)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--samplers", default=";".join(SAMPLERS), help="separated by semicolons")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--scatter", type=float, default=0.005, help="standard deviation of a measured accuracy")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    began = time.perf_counter()
    rows: Rows = rows_of(chosen)
    samplers, seeds = chosen.samplers.split(";"), seeds_of(chosen)
    for network in chosen.networks.split(","):
        jobs = {name: [Job(network, name, seed, chosen.trials, chosen.scatter) for seed in seeds] for name in samplers}
        by_seed = [job for of_seed in zip(*jobs.values(), strict=True) for job in of_seed]
        rows.complete(by_seed, search, processes=chosen.processes)
        found = {name: [row for job in jobs[name] if (row := rows.of(job)) is not None] for name in samplers}
        print_results(network, found, chosen.trials, seeds)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
