"""One search from config to result: the composition root, and the place to start reading.

A run has five acts: prepare the environment (where latency counts, calibrate it) and show the plan; train the dense
network; gather what the methods share; let the runner work off the tuner's trials; finalize: train the front again
where that is asked for, read test once, write everything down. A resumed run has the same five, with the trials and the
dense network that its folder holds (`search.storage.run_folder`).
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from configs.schema import RunConfig
from pruning.base import METHODS
from runners.base import RUNNERS
from runners.cache import cache_root
from runners.evaluation.evaluate import SearchContext, TrialContext, evaluate
from runners.evaluation.sensitivities import measure_sensitivities
from runners.training.compute_format import using_threads
from runners.training.dense import trained_net
from runners.training.loop import accuracy
from search.callbacks import CallbackList, SearchCallback
from search.environment import Environment, Plan, prepare
from search.finalization.finalizer import Ending, Finalizer
from search.finalization.retraining import Retrainer
from search.interrupts import Interrupts
from search.latency.calibration import LatencyCalibration, calibrate_latency
from search.latency.queue import MeasurementQueue, restore_readings
from search.planning import plan
from search.reporting.wording import plural
from search.results.result import SearchResult
from search.schedulers.asha import MultiObjectiveASHA
from search.schedulers.screening import Screening
from search.schedulers.stopping import TimeLimit
from search.searchers.candidate_space import CandidateSpace
from search.searchers.initial_design import sensing_images
from search.searchers.optuna_searcher import OptunaSearcher, TrialCounts
from search.storage import run_folder
from search.storage.checkpoints import CheckpointFolder
from search.storage.pending import PendingTrials
from search.storage.run_folder import OpenRun
from search.tracking.mlflow_tracker import MlflowTracker
from search.tuner import Records, Schedulers, Tuner

WAITING_PER_WORKER = 3  # networks that wait to be timed before the running trials are waited for

_log = logging.getLogger(__name__)


def run(config: RunConfig, callbacks: Sequence[SearchCallback] = ()) -> SearchResult:
    """Search the widths of a network under hard budgets.

    Args:
        config: what to search; `RunConfig(budget=("0.5gflops",))` is enough.
        callbacks: observe the search, such as a live display.

    Returns:
        The trials, the front and the chosen network; everything is also in the run folder.

    Raises:
        SlimfrontError: a config that cannot be met, or a time limit over before any trial; nothing is left behind.
        KeyboardInterrupt: stopped before the first trial was finished. Later a stop is a result, `interrupted`.
    """
    began, limit = time.perf_counter(), TimeLimit(config.time_limit, config.time_limit_seconds)
    CallbackList(callbacks).on_phase("reading data and tracing the network")
    environment = prepare(config)
    latency = calibrate_latency(environment, CallbackList(callbacks))
    candidates = CandidateSpace(environment.problem, latency.predictor if latency else None)
    planned = plan(environment, candidates, latency.dense_seconds if latency else None)
    with run_folder.opened(environment) as opened, using_threads(environment.threads_alone):
        if latency is not None:
            restore_readings(opened.history, latency.predictor, latency.conditions)
        tracker = MlflowTracker(environment.folder, environment.config)
        everyone = CallbackList([tracker, *callbacks])
        try:
            return _search(_Search(environment, latency, candidates, opened, everyone), planned, limit, began, tracker)
        except BaseException:
            everyone.on_search_abort()
            raise


@dataclass(frozen=True)
class _Search:
    """The parts of a search that are there before any training."""

    environment: Environment
    latency: LatencyCalibration | None
    candidates: CandidateSpace
    opened: OpenRun
    callback: SearchCallback


def _search(search: _Search, planned: Plan, limit: TimeLimit, began: float, tracker: MlflowTracker) -> SearchResult:
    environment, history, callback = search.environment, search.opened.history, search.callback
    total = TrialCounts.of(environment.problem, search.opened.stored).total
    callback.on_search_start(planned.remaining(history.results, total))
    net = _train_dense(environment, callback, limit)
    run_folder.save_dense(environment, search.opened.storage, net)
    dense_accuracy = accuracy(net, environment.data.val, device=environment.device)
    _warn_of_guessing(dense_accuracy, environment)
    callback.on_dense_evaluated(dense_accuracy, environment.problem, history.results)
    context = _search_context(environment, net, callback)
    tuner, interrupts = _tuner(search, net, limit)
    interrupted = _work_off(search, tuner, interrupts, context)
    retrainer = Retrainer(environment, context, callback)
    finalize = Finalizer(environment, search.latency, net, dense_accuracy, retrainer, callback)
    try:
        result = finalize(history.results, Ending(time.perf_counter() - began, interrupted, tuner.stopped))
    except KeyboardInterrupt:
        result = finalize(history.results, Ending(time.perf_counter() - began, True, tuner.stopped))
    callback.on_search_end(result, environment.folder, tracker.command())
    return result


def _tuner(search: _Search, net: nn.Module, limit: TimeLimit) -> tuple[Tuner, Interrupts]:
    """Put the tuner together from its parts."""
    environment, opened, latency = search.environment, search.opened, search.latency
    problem, history = environment.problem, opened.history
    left = TrialCounts.of(problem, opened.stored).total - len(history.results)
    sensitivities = _sensitivities(environment, net, search.callback) if left > 0 else None
    records = Records(history, PendingTrials(), opened.storage, CheckpointFolder(environment.folder))
    searcher = OptunaSearcher(search.candidates, history, records.pending, opened.stored, sensitivities=sensitivities)
    promotion = MultiObjectiveASHA(problem, search.candidates.objective_cost, history.results)
    screening = Screening(problem, environment.screening_pool_size, history.results)
    queue = None
    if latency is not None:
        size = WAITING_PER_WORKER * environment.workers
        queue = MeasurementQueue(
            history, opened.storage, latency.predictor, latency.reader(environment), size, search.callback
        )
    interrupts = Interrupts()
    schedulers = Schedulers(promotion, screening, limit)
    return Tuner(records, searcher, schedulers, queue, interrupts, search.callback), interrupts


def _work_off(search: _Search, tuner: Tuner, interrupts: Interrupts, context: SearchContext) -> bool:
    """Have the runner work off the tuner's trials; return whether the user stopped it."""
    environment, history = search.environment, search.opened.history
    done = len(history.results)
    so_far = f"; {done} of {tuner.total} trials are finished" if done else ""
    search.callback.on_phase(f"searching with {plural(environment.workers, 'worker')}{so_far}")
    try:
        if not tuner.unfinished:
            tuner.measure_remaining()  # networks that a killed search had left
        if tuner.unfinished:
            with interrupts:
                RUNNERS[environment.runner](environment.config.runner, evaluate).run(tuner, context)
    except KeyboardInterrupt:
        if not history.results:
            raise
        return True
    finally:
        tuner.close()
    return False


def _train_dense(environment: Environment, callback: SearchCallback, limit: TimeLimit) -> nn.Module:
    if (kept := run_folder.load_dense(environment)) is not None:
        return kept
    if environment.weighted:
        return environment.net
    epochs = environment.config.train.dense_epochs
    callback.on_phase(f"training the dense network, {plural(epochs, 'epoch')}, unless it is cached")

    def on_epoch(epoch: int, val_accuracy: float) -> None:
        callback.on_phase(f"training the dense network: epoch {epoch}/{epochs} done, {val_accuracy:.1%} on validation")
        if epoch < epochs:
            limit.check(f"after epoch {epoch} of {epochs} of the dense training")

    recipe = environment.dense_recipe
    return trained_net(recipe, cache_root(), compute_format=environment.compute_format, on_epoch=on_epoch)


def _warn_of_guessing(dense_accuracy: float, environment: Environment) -> None:
    """Say so when the dense network has learned next to nothing: no narrow one will look good then."""
    classes = environment.data.num_classes
    if dense_accuracy < 2 / classes:
        _log.warning(
            "the dense network has %.1f%% on validation, close to guessing among %d classes; raise --dense-epochs, "
            "change --dense-lr, or give trained --weights",
            100 * dense_accuracy,
            classes,
        )


def _search_context(environment: Environment, net: nn.Module, callback: SearchCallback) -> SearchContext:
    """Gather what all trials share: the dense network and the statistics of it that methods work from."""
    callback.on_phase("gathering statistics of the dense network")
    problem, data, train = environment.problem, environment.data, environment.config.train
    context = TrialContext(data, train, environment.config.seed)
    methods = dict.fromkeys(problem.methods)
    statistics = {
        name: METHODS[name](**problem.fixed.get(name, {})).prepare(net, problem.space, context) for name in methods
    }
    return SearchContext(
        net.cpu().eval(), problem.space, data, train, statistics, compute_format=environment.compute_format
    )


def _sensitivities(environment: Environment, net: nn.Module, callback: SearchCallback) -> Mapping[str, float] | None:
    """Measure the loss from narrowing each group of the dense network alone; None for a sampler that cannot use it."""
    images, space = sensing_images(environment), environment.problem.space
    if not images:
        return None
    count = len(space.variable)
    callback.on_phase(f"measuring how the network takes the narrowing of each of {count} groups, unless it is cached")
    context = TrialContext(environment.data, environment.config.train, environment.config.seed)
    return measure_sensitivities(net, space, context, images, cache_root()).by_group
