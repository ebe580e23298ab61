"""One search from config to result: the composition root, and the place to start reading.

A run has five acts: set up (where latency counts, time the layers) and show the plan; train the dense network; gather
what the methods share; let the runner work off the study's candidates; confirm the front on test (where it is asked
for by training it again) and write everything down. A resumed run has the same five, with the trials and the dense
network that its folder holds (`search.storage.run_folder`).
"""

import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from configs.schema import RunConfig
from pruning.base import METHODS
from runners.base import RUNNERS
from runners.cache import cache_root
from runners.evaluation.evaluate import SearchContext, TrialContext, evaluate
from runners.training.compute_format import using_threads
from runners.training.dense import DenseRecipe, trained_net
from runners.training.loop import accuracy
from runners.trial import TrialResult
from search.finalization.finish import Finish
from search.finalization.retraining import Confirmer
from search.interrupts import Interruptible
from search.latency import queue as latency_slots
from search.latency.calibration import start_latency
from search.latency.queue import Timed
from search.planning.time import plan
from search.problem import Setup, prepare, screened_at_once, sensing_images, study_settings
from search.reporting.live import Display, SilentDisplay
from search.reporting.wording import plural
from search.results.result import SearchResult
from search.schedulers.screening import Screened
from search.schedulers.stopping import Deadline, TimeLimited
from search.searchers.sensitivities import measured_sensitivities
from search.storage import run_folder as resume
from search.storage.checkpoints import TRIALS, TrialFiles
from search.tracking.mlflow_tracker import MlflowTracker
from search.tuner import Study

WAITING_PER_WORKER = 3  # networks that wait to be timed before the running trials are waited for

_log = logging.getLogger(__name__)


def run(config: RunConfig, display: Display | None = None) -> SearchResult:
    """Search the widths of a network under hard budgets.

    Args:
        config: what to search; `RunConfig(budget=("0.5gflops",))` is enough.
        display: shows the progress; None shows nothing.

    Returns:
        The trials, the front and the chosen network; everything is also in the run folder.

    Raises:
        SlimfrontError: a config that cannot be met, or a time limit over before any trial; nothing is left behind.
        KeyboardInterrupt: stopped before the first trial was finished. Later a stop is a result, `interrupted`.
    """
    began, deadline = time.perf_counter(), Deadline(config.time_limit)
    display = display or SilentDisplay()
    display.phase("reading data and tracing the network")
    setup = prepare(config)
    setup = dataclasses.replace(setup, latency=start_latency(setup, display))
    planned = plan(setup)
    with _run_folder(setup) as (study, tracker), using_threads(setup.threads_alone):
        display.plan(resume.remaining(planned, study))
        net = _train_dense(setup, display, deadline)
        resume.keep_dense(setup, study, net)
        dense_accuracy = accuracy(net, setup.data.val, device=setup.device)
        _warn_of_guessing(dense_accuracy, setup)
        tracker.dense(dense_accuracy, setup.space.dense_cost, setup.budgets)
        tracker.catch_up(study.results)
        search_context = _search_context(setup, study, net, display)
        _sense(setup, study, net, display)
        _follow(study, planned.reference, tracker, display)
        trials = TimeLimited(study, deadline, Screened(study, screened_at_once(setup)))
        interrupted = _work_off(setup, trials, search_context, display)
        finish = Finish(setup, net, dense_accuracy, Confirmer(setup, search_context, display), display)
        try:
            result = finish(study.results, time.perf_counter() - began, brief=interrupted, time_limited=trials.ended)
        except KeyboardInterrupt:
            result = finish(study.results, time.perf_counter() - began, brief=True, time_limited=trials.ended)
        tracker.finish(result)
    display.finish(finish.summary(result, tracker.command()))
    return result


@contextmanager
def _run_folder(setup: Setup) -> Iterator[tuple[Study, MlflowTracker]]:
    """Make the run folder with its study and tracker; without a finished trial an error takes it away again.

    A folder that was there before stays.
    """
    study: Study | None = None
    tracker: MlflowTracker | None = None
    folder = setup.folder.absolute()
    made = next((each for each in [*reversed(folder.parents), folder] if not each.exists()), folder)
    resumes = bool(setup.config.resume)
    try:
        (folder / TRIALS).mkdir(parents=True, exist_ok=resumes)
        with resume.locked(folder):
            study = _open_folder(setup)
            tracker = MlflowTracker(setup.folder, setup.config.tracking_uri, setup.config, resumes=resumes)
            tracker.start()
            yield study, tracker
    except BaseException:
        if tracker is not None:
            tracker.abort()
        if not resumes and (study is None or not study.results):
            shutil.rmtree(made, ignore_errors=True)
        raise


def _work_off(setup: Setup, trials: TimeLimited, search_context: SearchContext, display: Display) -> bool:
    """Have the runner try the study's candidates while there is time; return whether the user stopped it."""
    done, wanted = len(trials.study.results), trials.study.settings.trials
    so_far = f"; {done} of {wanted} trials are finished" if done else ""
    display.phase(f"searching with {plural(setup.workers, 'worker')}{so_far}")
    timed = _timed(setup, trials, display)
    try:
        if timed is not None and not trials.study.unfinished:
            timed.measure(last=True)  # what a search that was killed had left
        if trials.study.unfinished:
            with Interruptible(timed or trials) as interruptible:
                RUNNERS[setup.runner](setup.config.runner, evaluate).run(interruptible, search_context)
    except KeyboardInterrupt:
        if not trials.study.results:
            raise
        return True
    finally:
        trials.study.close()
    return False


def _timed(setup: Setup, trials: TimeLimited, display: Display) -> Timed | None:
    """Have networks measured between trials, where latency counts."""
    tools = setup.latency
    if tools is None:
        return None
    return Timed(trials, trials.study, tools.reader(setup), WAITING_PER_WORKER * setup.workers, display.phase)


def _open_folder(setup: Setup) -> Study:
    """Open the study in the run folder; a resumed one changes the folder's settings once the record agrees to them."""
    resumes = bool(setup.config.resume)
    if not resumes:
        resume.write_settings(setup)
    files = TrialFiles(setup.folder)
    study = Study(study_settings(setup), setup.space, setup.budgets, archive=files)
    resume.take_up(setup, study)
    if setup.latency is not None:
        latency_slots.take_up(study, setup.latency.conditions)
    if resumes:
        resume.write_settings(setup)
    return study


def _train_dense(setup: Setup, display: Display, deadline: Deadline) -> nn.Module:
    if (kept := resume.kept_dense(setup)) is not None:
        return kept
    if setup.weighted:
        return setup.net
    epochs = setup.config.train.dense_epochs
    display.phase(f"training the dense network, {plural(epochs, 'epoch')}, unless it is cached")

    def on_epoch(epoch: int, val_accuracy: float) -> None:
        display.phase(f"training the dense network: epoch {epoch}/{epochs} done, {val_accuracy:.1%} on validation")
        if epoch < epochs:
            deadline.check(f"after epoch {epoch} of {epochs} of the dense training")

    recipe = DenseRecipe(setup.spec, setup.data, setup.config.train, setup.config.seed)
    return trained_net(recipe, cache_root(), compute_format=setup.compute_format, on_epoch=on_epoch)


def _warn_of_guessing(dense_accuracy: float, setup: Setup) -> None:
    """Say so when the dense network has learned next to nothing: no narrow one will look good then."""
    if dense_accuracy < 2 / setup.data.num_classes:
        _log.warning(
            "the dense network has %.1f%% on validation, close to guessing among %d classes; raise --dense-epochs, "
            "change --dense-learning-rate, or give trained --weights",
            100 * dense_accuracy,
            setup.data.num_classes,
        )


def _search_context(setup: Setup, study: Study, net: nn.Module, display: Display) -> SearchContext:
    """Gather what all trials share: the dense network and each method's statistics of it."""
    display.phase("gathering statistics of the dense network")
    context = TrialContext(setup.data, setup.config.train, setup.config.seed)
    methods = {name: METHODS[name](**setup.fixed.get(name, {})) for name in study.settings.methods}
    statistics = {name: each.prepare(net, setup.space, context) for name, each in methods.items()}
    return SearchContext(
        net.cpu().eval(), setup.space, setup.data, setup.config.train, statistics, compute_format=setup.compute_format
    )


def _sense(setup: Setup, study: Study, net: nn.Module, display: Display) -> None:
    """Let a sampler that can use them know how the dense network takes the narrowing of each group."""
    images = sensing_images(setup)
    if not images or study.remaining <= 0:
        return
    count = len(setup.space.variable)
    display.phase(f"measuring how the network takes the narrowing of each of {count} groups, unless it is cached")
    context = TrialContext(setup.data, setup.config.train, setup.config.seed)
    found = measured_sensitivities(net, setup.space, context, images, cache_root())
    study.learn_sensitivities(found.by_group)


def _follow(study: Study, reference: float, tracker: MlflowTracker, display: Display) -> None:
    """Have every finished trial logged and shown."""

    def listener(result: TrialResult, study: Study) -> None:
        best = study.front.best(study.budgets)
        tracker.trial(result, study.front.hypervolume(reference), best.accuracy if best else None, len(study.front))
        display.trial_done(result, study.front, len(study.results), study.settings.trials)

    study.listeners.append(listener)
    study.climbing.append(lambda number, epochs: display.phase(f"trial {number} goes on to {epochs} epochs"))
