"""`python -m search prune`: the trained network of a config, cut by one method, trained for --epochs, and written."""

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from configs.schema import RunConfig
from pruning.base import METHODS, Goal, Method, Snapshot
from pruning.export import export_network
from pruning.file_size import file_size
from runners.cache import cache_root
from runners.evaluation.context import TrialContext, TrialInputs
from runners.evaluation.intermediate import promised_cost
from runners.training.compute_format import using_threads
from runners.training.dense import trained_net
from runners.training.scoring import exact_score
from search.environment import Environment, prepare
from search.library.prune import absolute, checked_cost
from search.results.score_names import ACCURACY, with_score_names
from spaces.cost import Cost
from spaces.errors import ConfigError
from spaces.widths import Widths

METHOD = "di"  # for --method auto: the strongest that is used once (docs/measured.md)
METRICS, SELECTION = "metrics.json", "selection.json"


@dataclass(frozen=True)
class NetworkFigures:
    """Cost and accuracies, in [0, 1], of a network.

    Attributes:
        test_accuracy: None where test images were not read.
        val_top5, test_top5: top-5 accuracy, read where test images are; None for another task, or up to five classes.
    """

    cost: Cost
    val_accuracy: float
    test_accuracy: float | None = None
    val_top5: float | None = None
    test_top5: float | None = None


@dataclass(frozen=True)
class PruneRun:
    """What cutting a network once gave.

    Attributes:
        cut: figures right after the cut; those of the end where the method trains before its last cut.
        epochs: of training after and during the cut.
        folder: holds the narrow network as files.
        names_code: whether they name a factory, which only a caller that trusts them loads.
        score_name: of the task; every accuracy here is this score.
    """

    method: str
    dense: NetworkFigures
    cut: NetworkFigures
    trained: NetworkFigures
    widths: Widths
    epochs: int
    folder: Path
    names_code: bool = False
    score_name: str = ACCURACY


def prune_run(config: RunConfig, say: Callable[[str], None]) -> PruneRun:
    """Cut the network of a config within its budgets by one method, train it on, and write it to the run folder.

    Args:
        say: called with the name of every phase.

    Raises:
        SlimfrontError: a setting that cannot be met; the message names it.
    """
    name = _method_name(config)
    say("reading data and tracing the network")
    environment = prepare(config)
    space = environment.problem.space
    budgets = absolute(environment.problem.budgets, space)
    method: Method = METHODS[name](**environment.problem.fixed.get(name, {}))
    with using_threads(environment.threads_alone):
        dense = _dense(environment, say).to(environment.device)
        context = _context(environment, dense)
        say(f"gathering statistics of the dense network for {name}")
        context.prepared = method.prepare(dense, space, context)
        say(f"cutting by {name} to {' and '.join(map(str, budgets))}")
        cut, final = None, None
        for snapshot in method.run(dense, space, Goal(budgets=budgets), context):
            if not all(budget.allows(promised_cost(snapshot, space)) for budget in budgets):
                continue  # an intermediate network
            context.reestimate_batchnorm(snapshot.net)
            accuracy = environment.score(snapshot.net, environment.data.val)
            figures = NetworkFigures(_cost(environment, snapshot), accuracy)
            cut, final = cut or figures, snapshot
            say(f"epoch {snapshot.epoch} of {config.train.epochs}: {figures.val_accuracy:.2%} on validation")
        if cut is None or final is None:
            raise ConfigError(f"method {name} gave no network within the budgets in {config.train.epochs} epochs")
        say(f"reading {len(environment.data.test)} test images and writing files")
        trained = _with_test(environment, final.net, figures)
        accuracy = environment.score(dense, environment.data.val)
        wide = _with_test(environment, dense, NetworkFigures(space.dense_cost, accuracy))
    run = PruneRun(
        name,
        wide,
        cut,
        trained,
        final.widths,
        final.epoch,
        environment.folder,
        names_code=":" in config.model,
        score_name=environment.task.score_name,
    )
    _write(run, environment, final)
    return run


def _method_name(config: RunConfig) -> str:
    if config.method == "auto":
        return METHOD
    if len(config.methods) != 1:
        raise ConfigError(f"--method {config.method!r} names {len(config.methods)}, and prune uses one; name it")
    return config.methods[0]


def _dense(environment: Environment, say: Callable[[str], None]) -> nn.Module:
    if environment.weighted:
        return copy.deepcopy(environment.net).eval()
    epochs = environment.config.train.dense_epochs
    say(f"training the dense network, {epochs} epochs, unless it is cached")

    def on_epoch(epoch: int, val_accuracy: float) -> None:
        say(f"training the dense network: epoch {epoch}/{epochs} done, {val_accuracy:.1%} on validation")

    return trained_net(environment.dense_recipe, cache_root(), on_epoch=on_epoch)


def _context(environment: Environment, dense: nn.Module) -> TrialContext:
    config = environment.config
    return TrialContext(
        environment.data,
        config.train,
        config.seed,
        TrialInputs(teacher=dense, rescales=config.train.rescale_weights == "all"),
        compute_format=environment.compute_format,
    )


def _cost(environment: Environment, snapshot: Snapshot) -> Cost:
    """Return the counted cost of a network, with the size of its file where one counts."""
    space, name = environment.problem.space, environment.config.size_format
    counted = checked_cost(snapshot, space)
    size = file_size(snapshot.net, name, space, snapshot.widths, environment.spec) if name else None
    return dataclasses.replace(counted, size=size)


def _with_test(environment: Environment, net: nn.Module, figures: NetworkFigures) -> NetworkFigures:
    """Return figures with what the network reaches on test images, and its top-5 accuracies."""
    data = environment.data
    read, val_top5 = exact_score(net, data.test, environment.config.train), environment.top5(net, data.val)
    return dataclasses.replace(figures, test_accuracy=read.score, val_top5=val_top5, test_top5=read.top5)


def _accuracies(figures: NetworkFigures) -> dict[str, float | None]:
    return {name: getattr(figures, name) for name in ("val_accuracy", "test_accuracy", "val_top5", "test_top5")}


def _write(run: PruneRun, environment: Environment, snapshot: Snapshot) -> None:
    """Write the network as every network of a front is written, its figures, and the channels that were kept."""
    shape = environment.data.input_shape
    export_network(snapshot.net.cpu(), environment.spec, run.widths, shape, run.folder)
    metrics = {
        "method": run.method,
        "settings": dict(environment.config.fixed_settings.get(run.method, {})),
        "budgets": [str(budget) for budget in environment.problem.budgets],
        "epochs": run.epochs,
        "flops": run.trained.cost.flops,
        "params": run.trained.cost.params,
        "activations_bytes": run.trained.cost.activations,
        "size_bytes": run.trained.cost.size,
        "val_accuracy_after_cut": run.cut.val_accuracy,
        **_accuracies(run.trained),
        "dense": with_score_names(_accuracies(run.dense), run.score_name),
    }
    named = with_score_names(metrics, run.score_name)
    (run.folder / METRICS).write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")
    if snapshot.selection is not None:
        kept = {name: channels.tolist() for name, channels in snapshot.selection.items()}
        (run.folder / SELECTION).write_text(json.dumps(kept) + "\n", encoding="utf-8")
