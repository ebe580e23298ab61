"""One search from config to result: the composition root, and the place to start reading.

A run has five acts: prepare the environment, calibrate latency where the search needs it, and show the plan; train the
dense network; compute the statistics that all methods share; have the runner train the tuner's trials; finalize, which
retrains the front where the config asks for it, reads the test images once and writes the run folder. A resumed run has
the same five, with the trials and the dense network that its folder holds (`search.storage.run_folder`).
"""

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from configs.parsing import AUTO
from configs.schema import RunConfig
from pruning.base import METHODS, PruningError
from pruning.steps import hearing_steps
from runners.base import RUNNERS
from runners.cache import cache_root
from runners.evaluation.context import SearchContext, TrialContext
from runners.evaluation.evaluate import evaluate
from runners.evaluation.proxy import proxy_target
from runners.evaluation.sensitivities import measure_sensitivities
from runners.training.compute_format import using_threads
from runners.training.dense import trained_net
from search.callbacks import CallbackList, SearchCallback
from search.environment import LEARNED_IMAGES, Environment, Plan, prepare
from search.finalization.finalizer import Ending, Finalizer
from search.finalization.retraining import Retrainer
from search.latency.calibration import LatencyCalibration, calibrate_latency
from search.latency.queue import MeasurementQueue, restore_readings
from search.planning import final_cost, plan, screening_pool_size
from search.problem import BASELINE_METHODS
from search.reporting.progress import ConsoleProgress
from search.reporting.wording import plural
from search.results.result import SearchResult
from search.schedulers.asha import MultiObjectiveASHA
from search.schedulers.final_training import DenseAccuracy, FinalTraining
from search.schedulers.screening import Screening
from search.schedulers.segments import reopen
from search.schedulers.stopping import TimeLimit
from search.searchers.candidate_space import CandidateSpace
from search.searchers.initial_design import sensing_images
from search.searchers.optuna_searcher import OptunaSearcher, TrialCounts
from search.servers import check_servers
from search.storage import run_folder
from search.storage.checkpoints import CheckpointFolder
from search.storage.pending import PendingTrials
from search.storage.run_folder import OpenRun
from search.tracking.mlflow_tracker import MlflowTracker
from search.tuner import Tuner
from spaces.errors import LostError, NoRoomError
from spaces.files import is_full, no_room

WAITING_PER_WORKER = 3  # once so many networks wait to be timed, no trial begins until they are

_log = logging.getLogger(__name__)


def run(config: RunConfig, callbacks: Sequence[SearchCallback] = ()) -> SearchResult:
    """Search the widths of a network under hard budgets.

    Args:
        config: what to search; `RunConfig(budget=("0.5gflops",))` is enough.
        callbacks: observe the search, such as a live display; without any, a notebook shows the progress.

    Returns:
        The trials, the front and the chosen network; everything is also in the run folder.

    Raises:
        SlimfrontError: a config that cannot be met, or a time limit over before any trial; nothing is left behind.
        LostError: the cluster or the storage went away, or a disk is full; what was finished is in the run folder.
        KeyboardInterrupt: stopped before the first trial was finished. Later a stop is a result, `interrupted`.
    """
    began, limit = time.perf_counter(), TimeLimit(config.time_limit, config.time_limit_seconds)
    if not callbacks and _in_notebook():
        callbacks = [ConsoleProgress(sys.stdout)]
    callback = CallbackList(callbacks)
    callback.on_phase("reading data and tracing the network")
    check_servers(config)
    environment = prepare(config)
    with hearing_steps(callback.on_steps):
        latency = calibrate_latency(environment, callback)
    if latency is not None:
        environment = replace(environment, problem=latency.predictor.problem)
    candidates = CandidateSpace(environment.problem, latency.predictor if latency else None)
    planned = plan(environment, candidates, latency.dense_seconds if latency else None)
    with run_folder.opened(environment) as opened, using_threads(environment.threads_alone):
        if latency is not None:
            latency.keep(environment.folder)
            restore_readings(opened.history, latency.predictor, latency.conditions)
        opened.history.revise(reopen)
        tracker = MlflowTracker(environment.folder, environment.config)
        search = _Search(environment, latency, candidates, opened, limit, CallbackList([tracker, *callbacks]))
        again = run_folder.resume_command(environment.folder)
        try:
            result = search.run(planned, began)
            search.callback.on_search_end(result, environment.folder, tracker.command())
            opened.storage.finish(again)
        except BaseException as error:
            search.callback.on_search_abort()
            if opened.history.results and is_full(error, environment.folder):
                told = _full_disk(error, environment.folder)
                raise NoRoomError(f"{told}; the finished trials are kept, make room and {again} goes on") from error
            raise
        if result.lost:
            raise LostError(f"{result.lost}; the front of what was finished is written, {again} goes on")
        return result


def _full_disk(error: BaseException, folder: Path) -> str:
    """Say in one line where there is no room."""
    named = getattr(error, "filename", None)
    return f"no room left on the disk of {str(named or folder)!r}"


def _in_notebook() -> bool:
    """Return whether a notebook runs this process; IPython is not imported for it."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


@dataclass(frozen=True)
class _Search:
    """The acts of a search after its plan, over the parts that exist before any training."""

    environment: Environment
    latency: LatencyCalibration | None
    candidates: CandidateSpace
    opened: OpenRun
    limit: TimeLimit
    callback: SearchCallback

    def run(self, planned: Plan, began: float) -> SearchResult:
        """Return the result; `began` is the time on the performance counter when the search began."""
        environment, history = self.environment, self.opened.history
        total = TrialCounts.of(environment.problem, self.opened.stored).total
        self.callback.on_search_start(planned.remaining(history.searched, total))
        net = self._train_dense()
        run_folder.save_dense(environment, self.opened.storage, net)
        dense_accuracy = environment.score(net, environment.data.val)
        _warn_of_guessing(dense_accuracy, environment)
        self.callback.on_dense_evaluated(dense_accuracy, environment.problem, history.results)
        with hearing_steps(self.callback.on_steps):
            context = self._search_context(net)
        context = replace(context, trial_timeout=planned.trial_timeout, node_timeout=self.limit.left)
        train_accuracy = environment.score(net, environment.data.calibration, limit=LEARNED_IMAGES)
        tuner = self._tuner(net, total - len(history.searched), DenseAccuracy(dense_accuracy, train_accuracy))
        interrupted, lost = self._run_trials(tuner, context)
        retrainer = Retrainer(environment, context, self.callback)
        finalize = Finalizer(environment, self.latency, net, dense_accuracy, retrainer, self.callback)
        try:
            return finalize(history.results, Ending(time.perf_counter() - began, interrupted, tuner.stopped, lost))
        except KeyboardInterrupt:
            return finalize(history.results, Ending(time.perf_counter() - began, True, tuner.stopped, lost))

    def _train_dense(self) -> nn.Module:
        """Return the dense network: that of the run folder, the user's, or one that is trained now or was cached."""
        environment = self.environment
        if (kept := run_folder.load_dense(environment)) is not None:
            return kept
        if environment.weighted:
            return environment.net
        epochs = environment.config.train.dense_epochs
        self.callback.on_phase(f"training the dense network, {plural(epochs, 'epoch')}, unless it is cached")

        def on_epoch(epoch: int, val_accuracy: float) -> None:
            self.callback.on_phase(f"training the dense network: epoch {epoch}/{epochs} done, {val_accuracy:.1%}")
            self.callback.on_steps(epoch, epochs)
            if epoch < epochs:
                self.limit.check(f"after epoch {epoch} of {epochs} of the dense training")

        recipe = environment.dense_recipe
        return trained_net(recipe, cache_root(), on_epoch=on_epoch)

    def _search_context(self, net: nn.Module) -> SearchContext:
        """Return what all trials share: the dense network, and its statistics that the methods need."""
        self.callback.on_phase("gathering statistics of the dense network")
        problem, data, train = self.environment.problem, self.environment.data, self.environment.config.train
        statistics = {}
        for name in dict.fromkeys((*problem.methods, *BASELINE_METHODS)):
            method = METHODS[name](**problem.fixed.get(name, {}))
            try:
                statistics[name] = method.prepare(net, problem.space, self._trial_context)
            except PruningError as error:
                if name in problem.methods:
                    raise
                _log.warning("the baseline method %s cannot be prepared, so its trials will fail: %s", name, error)
        target = proxy_target(net, data.calibration, device=self.environment.device)
        return SearchContext(
            net.cpu().eval(),
            problem.space,
            data,
            train,
            statistics,
            threads_alone=0 if self.environment.config.runner.cluster else self.environment.threads_alone,
            compute_format=self.environment.compute_format,
            proxy_target=target,
            files=self.environment.config.data.files,
            size_format=self.environment.config.size_format,
        )

    @property
    def _trial_context(self) -> TrialContext:
        return TrialContext(self.environment.data, self.environment.config.train, self.environment.config.seed)

    def _sensitivities(self, net: nn.Module) -> Mapping[str, float] | None:
        """Measure the loss from narrowing each group of the dense network alone; None if the sampler cannot use it."""
        images, space = sensing_images(self.environment), self.environment.problem.space
        if not images:
            return None
        count = len(space.variable)
        self.callback.on_phase(f"measuring sensitivities of {plural(count, 'group')}, unless cached")
        return measure_sensitivities(net, space, self._trial_context, images, cache_root()).by_group

    def _tuner(self, net: nn.Module, left: int, dense: DenseAccuracy) -> Tuner:
        """Put the tuner together from its parts; `left` is the number of trials without a result."""
        environment, opened, latency = self.environment, self.opened, self.latency
        problem, history, pending = environment.problem, opened.history, PendingTrials()
        with hearing_steps(self.callback.on_steps):
            sensitivities = self._sensitivities(net) if left > 0 else None
        pool_size = screening_pool_size(environment, self.candidates)
        queue = None
        if latency is not None:
            size = WAITING_PER_WORKER * environment.workers
            read = latency.reader(environment)
            places = latency.meter.places
            queue = MeasurementQueue(history, opened.storage, latency.predictor, read, size, self.callback, places)
        return Tuner(
            history=history,
            pending=pending,
            searcher=OptunaSearcher(self.candidates, history, pending, opened.stored, sensitivities=sensitivities),
            scheduler=MultiObjectiveASHA(problem, self.candidates.objective_cost, history.results),
            final_training=FinalTraining(
                self.candidates,
                self._final_epochs(),
                dense,
                len(environment.data.val),
                final_cost(environment),
            ),
            screening=Screening(problem, pool_size, history.results, environment.workers),
            stop=self.limit,
            search_stop=self.limit.part(1 - environment.config.final_share),
            queue=queue,
            storage=opened.storage,
            checkpoints=CheckpointFolder(environment.folder),
            callback=self.callback,
        )

    def _final_epochs(self) -> int:
        """Return the epochs of final training at each target; for new targets of an old search what those of then had.

        A new target starts from a finished network of then, so that the price of one target is enough.
        """
        epochs, stored = self.environment.config.final_training, self.opened.stored
        earlier = [trial.result.final_epochs for trial in stored if trial.earlier and trial.result is not None]
        if self.environment.config.final_epochs != AUTO or not any(earlier):
            return epochs
        return min(epochs, max(earlier))

    def _run_trials(self, tuner: Tuner, context: SearchContext) -> tuple[bool, str]:
        """Have the runner train the tuner's trials; return whether the user stopped it, and what was lost."""
        environment, done = self.environment, len(self.opened.history.searched)
        so_far = f"; {done} of {tuner.total} trials are finished" if done else ""
        self.callback.on_phase(f"searching with {plural(environment.workers, 'worker')}{so_far}")
        try:
            if not tuner.unfinished:
                tuner.measure_remaining()  # networks that a killed search had left
            if tuner.unfinished:
                with tuner.interrupts:
                    RUNNERS[environment.runner](environment.config.runner, evaluate).run(tuner, context)
        except KeyboardInterrupt:
            if not self.opened.history.results:
                raise
            return True, ""
        except LostError as error:
            if not self.opened.history.results:
                raise
            return False, str(error)
        except OSError as error:
            if not (self.opened.history.results and no_room(error)):
                raise
            return False, _full_disk(error, environment.folder)
        finally:
            tuner.close()
        return False, ""


def _warn_of_guessing(dense_accuracy: float, environment: Environment) -> None:
    """Warn when the dense network has learned next to nothing: no narrow network will be accurate then."""
    classes = environment.data.num_classes
    if environment.task.classifies and dense_accuracy < 2 / classes:
        advice = (
            "--weights must be of these classes in this order, and of images that are normalised like these"
            if environment.weighted
            else "raise --dense-epochs, change --dense-lr, or give trained --weights"
        )
        _log.warning(
            "the dense network has %.1f%% on validation, close to guessing among %d classes; %s",
            100 * dense_accuracy,
            classes,
            advice,
        )
