"""One search from config to result: the composition root, and the place to start reading.

A run has five acts: set up and show the plan; train the dense network; gather what the methods share; let the
runner work off the study's candidates; confirm the front on test and write everything down.
"""

import logging
import shutil
import time

from torch import nn

from configs.loading import effective_yaml
from configs.schema import RunConfig
from pruning import checkpoint
from pruning.base import METHODS
from runners.base import RUNNERS
from runners.cache import cache_root
from runners.dense import dense_net
from runners.evaluate import TrialContext, Workbench
from runners.train import accuracy
from runners.trial import TrialResult
from search.finish import Finish
from search.live import Display, SilentDisplay
from search.result import SearchResult
from search.setup import Setup, plan, prepare, study_settings
from search.study import Study
from search.tracking import MlflowTracker
from spaces.errors import SlimfrontError

_log = logging.getLogger(__name__)


def run(config: RunConfig, display: Display | None = None) -> SearchResult:
    """Search the widths of a network under hard budgets.

    Args:
        config: what to search; `RunConfig(budget=("0.5gflops",))` is enough.
        display: shows the progress; None shows nothing.

    Returns:
        The trials, the front and the chosen network; everything is also in the run folder.

    Raises:
        SlimfrontError: a config that cannot be met; nothing is left behind.
        KeyboardInterrupt: stopped before the first trial was finished. Later a stop is a result, `interrupted`.
    """
    began = time.perf_counter()
    display = display or SilentDisplay()
    display.phase("reading data and tracing the network")
    setup = prepare(config, cache_root())
    display.plan(plan(setup))
    try:
        study = _open_folder(setup)
        tracker = MlflowTracker(setup.folder, config.tracking_uri, config)
        tracker.start()
    except (SlimfrontError, OSError):
        shutil.rmtree(setup.folder, ignore_errors=True)
        raise
    interrupted = False
    try:
        net = _train_dense(setup, display)
        dense_accuracy = accuracy(net, setup.data.val, device=setup.device)
        tracker.dense(dense_accuracy, setup.space.dense_cost, setup.budgets)
        bench = _workbench(setup, study, net, display)
        _follow(study, setup.space.dense_cost.flops, tracker, display)
        display.phase(f"searching with {setup.workers} worker{'s' if setup.workers > 1 else ''}")
        try:
            RUNNERS[setup.runner](config.runner).run(study, bench)
        except KeyboardInterrupt:
            if not study.results:
                raise
            interrupted = True
        finally:
            study.close()
        finish = Finish(setup, net, dense_accuracy, interrupted, display)
        result = finish(study.results, time.perf_counter() - began)
        tracker.finish(result)
    except BaseException:
        tracker.abort()
        raise
    display.finish(finish.summary(result, tracker.command()))
    return result


def _open_folder(setup: Setup) -> Study:
    """Make the run folder and the study in it."""
    trials = setup.folder / "trials"
    trials.mkdir(parents=True)
    (setup.folder / "config.yaml").write_text(effective_yaml(setup.config), encoding="utf-8")

    def archive(result: TrialResult) -> TrialResult:
        if result.checkpoint is None:
            return result
        path = trials / f"{result.trial.number:04d}.safetensors"
        checkpoint.write(path, result.checkpoint)
        return result.without_checkpoint(str(path.relative_to(setup.folder)))

    return Study(study_settings(setup), setup.space, setup.budgets, archive=archive)


def _train_dense(setup: Setup, display: Display) -> nn.Module:
    if setup.weighted:
        return setup.net
    epochs = setup.config.train.dense_epochs
    display.phase(f"training the dense network, {epochs} epochs")

    def on_epoch(epoch: int, val_accuracy: float) -> None:
        display.phase(f"training the dense network: epoch {epoch}/{epochs} done, {val_accuracy:.1%} on validation")

    config = setup.config
    return dense_net(setup.spec, "", setup.data, config.train, config.seed, cache_dir=cache_root(), on_epoch=on_epoch)[
        0
    ]


def _workbench(setup: Setup, study: Study, net: nn.Module, display: Display) -> Workbench:
    """Gather what all trials share: the dense network and each method's statistics of it."""
    display.phase("gathering statistics of the dense network")
    context = TrialContext(setup.data, setup.config.train, setup.config.seed)
    methods = {name: METHODS[name]() for name in study.settings.methods}
    statistics = {name: each.prepare(net, setup.space, context) for name, each in methods.items()}
    return Workbench(net.cpu().eval(), setup.space, setup.data, setup.config.train, statistics, fast=setup.fast)


def _follow(study: Study, dense_flops: int, tracker: MlflowTracker, display: Display) -> None:
    """Have every finished trial logged and shown."""

    def listener(result: TrialResult, study: Study) -> None:
        best = study.front.best(study.budgets)
        tracker.trial(result, study.front.hypervolume(dense_flops), best.accuracy if best else None, len(study.front))
        display.trial_done(result, study.front, len(study.results), study.settings.trials)

    study.listeners.append(listener)
