"""The time and the training that a search is expected to take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from configs.parsing import STATISTICS_IMAGES, screen_images
from configs.schema import RunConfig
from pruning.base import METHODS
from pruning.settings import Setting
from pruning.traits import screenable, wide_epochs
from runners.training.compute_format import step_seconds, using_threads
from search.environment import STEP_IMAGES, Environment, Plan
from search.results.pareto import counted
from search.schedulers.asha import expected_epochs
from search.searchers.candidate_space import CandidateSpace
from search.searchers.initial_design import InitialDesign

NARROW_POWER = 0.8  # of the share of FLOPs gives the share of time: cifar_resnet18 at 17% of the FLOPs took 24%
FRONT_SHARE = 0.4  # of the trials: networks on the front (README: 6 of 20, 12 of 24)
LATENCY_SECONDS = 45.0  # for the dense network, the smallest one and the latency model, unless that is cached
TIMING_SECONDS = 1.5  # for each reading of a network on an idle machine
SECONDS_AROUND = 30.0  # for the start of Ray, statistics, confirmation, export and report


@dataclass(frozen=True)
class TimeForecast:
    """Estimated seconds of wall time.

    Attributes:
        dense: for the dense network; 0 when its weights are given or cached.
        trials: for all trials, with as many at once as there are workers.
        around: for everything else.
    """

    dense: float
    trials: float
    around: float = SECONDS_AROUND

    @property
    def total(self) -> float:
        """The whole search, time limit aside."""
        return self.dense + self.trials + self.around


def plan(
    environment: Environment,
    candidates: CandidateSpace,
    dense_seconds: float | None = None,
    forecast: TimeForecast | None = None,
) -> Plan:
    """Return the search with what it is expected to take.

    Args:
        dense_seconds: latency of the dense network, once measured.
        forecast: of the time; None makes it here.
    """
    seconds = (forecast or forecast_time(environment, candidates)).total
    epochs = forecast_epochs(environment.config) if environment.problem.rungs else 0.0
    return Plan(environment, seconds, epochs, dense_seconds)


def forecast_epochs(config: RunConfig) -> float:
    """Estimate the epochs of training of all trials together; baselines and members of the front get all epochs."""
    if rungs := config.rung_epochs:
        return expected_epochs(rungs, config.trials, round(FRONT_SHARE * config.trials))
    return float(config.train.epochs * config.trials)


def forecast_time(environment: Environment, candidates: CandidateSpace) -> TimeForecast:
    """Estimate the wall time from timed training steps of the dense network, by images, epochs and mean FLOPs."""
    config, data, file = environment.config, environment.data, environment.dense_file
    train, pool = config.train, environment.screening_pool_size
    dense = 0 if file is None or file.exists() else train.dense_epochs * len(data.train)
    forward = STATISTICS_IMAGES + (train.epochs + 1) * len(data.val)
    images_per_trial = train.epochs * len(data.train) + forward / 3  # a forward pass is a third of a step
    if pool > 1:
        screened = screened_trials(candidates, config.trials) / config.trials
        images_per_trial += pool * screen_images(len(data.val)) * screened
    trials = _dense_trials(environment, candidates) * images_per_trial / environment.workers
    # A confirmation trains to the end at once; trials that end at a rung take their share.
    share = forecast_epochs(config) / (train.epochs * config.trials) if train.epochs else 1.0
    trials *= share + _retrainings(config) / config.trials
    test = _retrainings(config) * len(data.test) / 3
    alone = _seconds_per_image(environment, environment.threads_alone)
    in_worker = _seconds_per_image(environment, environment.threads)
    around = SECONDS_AROUND
    if environment.problem.needs_latency:
        around += LATENCY_SECONDS + TIMING_SECONDS * config.trials
    elif config.latency.measures:
        around += len(config.latency.batch) * TIMING_SECONDS * (1 + FRONT_SHARE * config.trials)
    return TimeForecast((dense + test) * alone, trials * in_worker, around)


def screened_trials(candidates: CandidateSpace, trials: int) -> float:
    """Return about how many trials will be the winner of a screening pool: proposals with methods that allow it."""
    design = InitialDesign(candidates)
    proposed = trials - len(design.baselines(trials)) - len(design.uniform(trials))
    return proposed * len(screenable_methods(candidates)) / len(candidates.methods)


def screenable_methods(candidates: CandidateSpace) -> list[str]:
    """Return the methods whose candidates can be compared before training."""
    return [name for name in candidates.methods if screenable(METHODS[name], candidates.problem.fixed.get(name, {}))]


def mean_epochs(searched: Sequence[Setting], epochs: int) -> float:
    """Return how many epochs a proposed trial trains on average: the set ones, unless epochs are searched.

    Whole numbers from a to b on a log scale are drawn from [a - 1/2, b + 1/2].
    """
    for setting in searched:
        if setting.name == "epochs" and setting.low and setting.high:
            return (setting.high - setting.low + 1) / math.log((setting.high + 0.5) / (setting.low - 0.5))
    return float(epochs)


def _retrainings(config: RunConfig) -> float:
    """Estimate the trainings of the confirmation: of the front, and of uniform widths beside it or at each target."""
    baselines = max(1, len(config.target_budgets))
    return config.confirm * (baselines + FRONT_SHARE * config.trials) if config.confirm > 1 else 0.0


def _dense_trials(environment: Environment, candidates: CandidateSpace) -> float:
    """Estimate how many trials that train the dense network would cost as much as the trials of the search.

    The initial design is known. The other trials are spread evenly over the targets or over log cost, and over methods
    as if all of them were equally good: in proportion to one over their time (see `search.searchers.method_choice`).
    """
    problem, trials, epochs = environment.problem, environment.config.trials, environment.config.train.epochs
    dense = problem.space.dense_cost
    limits = [budget.limit / getattr(dense, budget.quantity) for budget in counted(problem.budgets)]
    share_allowed = min([1.0, *limits])

    def time_share(name: str, fraction: float) -> float:
        method = METHODS[name](**problem.fixed.get(name, {}))
        wide = wide_epochs(method, epochs) / max(1, epochs)
        return float(wide + (1 - wide) * math.pow(fraction * share_allowed, NARROW_POWER))

    design = InitialDesign(candidates)
    points = [*design.baselines(trials), *design.uniform(trials)]
    known = [time_share(point.method, point.parameters["budget_fraction"]) for point in points]
    speeds = [1 / time_share(name, candidates.cost_coverage.mean) for name in candidates.methods]
    longer = mean_epochs(candidates.training, epochs) / max(1, epochs)
    return sum(known) + longer * (trials - len(points)) * len(speeds) / sum(speeds)


def _seconds_per_image(environment: Environment, threads: int) -> float:
    images = torch.rand(STEP_IMAGES, *environment.data.input_shape, device=environment.device)
    with using_threads(threads):
        return step_seconds(environment.net, images, environment.compute_format) / STEP_IMAGES
