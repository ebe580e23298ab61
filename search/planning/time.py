"""What a search will take: its plan, and the time it is expected to need."""

import math
from dataclasses import dataclass

import torch

from configs.parsing import STATISTICS_IMAGES, screen_images
from configs.schema import RunConfig
from pruning.base import METHODS
from pruning.traits import wide_epochs
from runners.training.compute_format import step_seconds, using_threads
from search.latency.predictor import latency_counts
from search.problem import STEP_IMAGES, Setup, dense_file, screened_at_once, study_settings
from search.reporting.plan_table import Plan
from search.reporting.screening import screened_trials
from search.reporting.training import mean_epochs
from search.schedulers.asha import expected_epochs
from search.searchers.candidate_space import CandidateSpace
from search.searchers.initial_design import Starts

NARROW_POWER = 0.8  # of the share of FLOPs, gives that of time: cifar_resnet18 at 17% of the FLOPs took 24% of the time
FRONT_SHARE = 0.4  # of the trials: networks on the front (README: 6 of 20, 12 of 24)
LATENCY_SECONDS = 45.0  # the dense net, the smallest and the latency model, unless that is cached
TIMING_SECONDS = 1.5  # each reading of a network on a machine that keeps still
SECONDS_AROUND = 30.0  # start of Ray, statistics, confirmation, export and report


@dataclass(frozen=True)
class TimeForecast:
    """Estimated seconds of wall time.

    Attributes:
        dense: for the dense network; 0 when its weights are given or cached.
        trials: for all trials, as many at once as there are workers.
        around: for everything else.
    """

    dense: float
    trials: float
    around: float = SECONDS_AROUND

    @property
    def total(self) -> float:
        """The whole search, time limit aside."""
        return self.dense + self.trials + self.around


def plan(setup: Setup, forecast: TimeForecast | None = None) -> Plan:
    """Describe the search, with a forecast of its time; without one it is made here."""
    data = setup.data
    return Plan(
        config=setup.config,
        space=setup.space,
        budgets=setup.budgets,
        targets=setup.targets,
        images={"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        workers=setup.workers,
        threads=setup.threads,
        folder=setup.folder,
        seconds=(forecast or forecast_time(setup)).total,
        dense_seconds=setup.latency.dense_seconds if setup.latency else None,
        epochs=forecast_epochs(setup.config) if setup.config.rung_epochs else 0.0,
    )


def forecast_epochs(config: RunConfig) -> float:
    """Estimate the epochs of training of all trials together: members of the front and control arms get them all."""
    if rungs := config.rung_epochs:
        return expected_epochs(rungs, config.trials, round(FRONT_SHARE * config.trials))
    return float(config.train.epochs * config.trials)


def forecast_time(setup: Setup) -> TimeForecast:
    """Estimate the wall time from timed training steps of the dense net, by images, epochs and mean FLOPs."""
    train, data = setup.config.train, setup.data
    file = dense_file(setup)
    dense = 0 if file is None or file.exists() else train.dense_epochs * len(data.train)
    forward = STATISTICS_IMAGES + (train.epochs + 1) * len(data.val)
    images_per_trial = train.epochs * len(data.train) + forward / 3  # a forward pass is a third of a step
    images_per_trial += _screened_images(setup)
    trials = _dense_trials(setup) * images_per_trial / setup.workers
    # Confirmation trains to the end at once; of the trials, those that end at a rung take their share.
    share = forecast_epochs(setup.config) / (train.epochs * setup.config.trials) if train.epochs else 1.0
    trials *= share + _trained_again(setup.config) / setup.config.trials
    test = _trained_again(setup.config) * len(data.test) / 3
    alone, in_worker = _seconds_per_image(setup, setup.threads_alone), _seconds_per_image(setup, setup.threads)
    around = SECONDS_AROUND
    if latency_counts(setup.config, setup.budgets):
        around += LATENCY_SECONDS + TIMING_SECONDS * setup.config.trials
    elif setup.config.latency.measures:
        sizes = len(setup.config.latency.batch)
        around += sizes * TIMING_SECONDS * (1 + FRONT_SHARE * setup.config.trials)
    return TimeForecast((dense + test) * alone, trials * in_worker, around)


def _screened_images(setup: Setup) -> float:
    """Estimate how many images of training take as long as what a trial, on average, is compared with before."""
    size, trials = screened_at_once(setup), setup.config.trials
    candidates = CandidateSpace(study_settings(setup), setup.space, setup.budgets)
    chosen = screened_trials(candidates, trials) if size > 1 else 0.0
    return size * screen_images(len(setup.data.val)) * chosen / trials


def _trained_again(config: RunConfig) -> float:
    """Estimate how many trainings the confirmation takes: the front, and uniform widths beside it or at each target."""
    baselines = max(1, len(config.target_budgets))
    return config.confirm * (baselines + FRONT_SHARE * config.trials) if config.confirm > 1 else 0.0


def _dense_trials(setup: Setup) -> float:
    """Estimate how many trials that train the dense net all the time would cost as much as those of the search.

    Those that are planned are known. The others are spread evenly over the targets or over log cost, and over methods
    as if all of them were equally good: in proportion to one over their time (see `search.searchers.method_choice`).
    """
    settings = study_settings(setup)
    candidates = CandidateSpace(settings, setup.space, setup.budgets)
    dense, epochs = setup.space.dense_cost, setup.config.train.epochs
    limits = [each for each in setup.budgets if each.quantity != "latency"]
    budget: float = min([1.0, *[each.limit / getattr(dense, each.quantity) for each in limits]])

    def share(name: str, fraction: float) -> float:
        method = METHODS[name](**setup.fixed.get(name, {}))
        wide = wide_epochs(method, epochs) / max(1, epochs)
        return wide + (1 - wide) * math.pow(fraction * budget, NARROW_POWER)

    starts = Starts(candidates)
    planned = [*starts.baselines(settings.trials), *starts.warm_starts(settings.trials)]
    known = [share(each.method, each.parameters["budget_fraction"]) for each in planned]
    mean = candidates.spread.mean
    speeds = [1 / share(name, mean) for name in settings.methods]
    longer = mean_epochs(settings.training, epochs) / max(1, epochs)
    return sum(known) + longer * (settings.trials - len(planned)) * len(speeds) / sum(speeds)


def _seconds_per_image(setup: Setup, threads: int) -> float:
    images = torch.rand(STEP_IMAGES, *setup.data.input_shape, device=setup.device)
    with using_threads(threads):
        return step_seconds(setup.net, images, setup.compute_format) / STEP_IMAGES
