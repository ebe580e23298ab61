"""prune: a narrow network from a live one by one method, used once, without a search."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from pruning.base import METHODS, Context, Goal, Method, PruningError, Snapshot
from pruning.file_size import CHECKPOINT, file_size
from pruning.selection import Selection
from pruning.settings import declared_settings, parse_settings
from pruning.traits import screenable
from search.library.calibration import Calibration
from spaces.budget import Budget, parse_budgets
from spaces.cost import Cost
from spaces.counting import count_cost
from spaces.errors import BudgetError
from spaces.space import SearchSpace, SpaceConfig, uniform_ratios
from spaces.widths import Widths
from spaces.zoo.inputs import taking_inputs


@dataclass(frozen=True)
class Pruned:
    """A network that was cut once.

    Attributes:
        net: the narrow network, with the inputs, outputs and device of the dense one, in evaluation mode.
        cost: counted on it, for one sample.
        dense_cost: of the network that it was cut from.
        selection: group name -> channels that were kept, as ascending indices into the dense network.
        space: what could have been cut; its groups name the layers.
    """

    net: nn.Module = field(repr=False)
    cost: Cost
    dense_cost: Cost
    widths: Widths
    selection: Selection = field(repr=False)
    space: SearchSpace = field(repr=False)


def prune(
    net: nn.Module,
    images: Any,
    budget: str | Sequence[str] = "50%",
    method: str = "di",
    *,
    settings: Mapping[str, Any] | None = None,
    space: SpaceConfig | None = None,
) -> Pruned:
    """Cut a live network so that it meets a budget; train the result as you train any network.

    Args:
        net: any network, with trained weights; it is not changed.
        images: a batch as the network takes it (a tensor, a tuple of several inputs, or a dict of keyword inputs), or a
            loader. A loader yields such batches, or (inputs, targets); the last of a longer list is the target. One
            such pair will do where the network does not take both. The first 512 samples serve for statistics, and
            their targets where they are class indices of the one output.
        budget: limit as in `--budget`, of FLOPs, parameters, activations or the size of a safetensors file, or
            several that must all hold.
        method: name of a method that cuts without training: di, or one of the scores such as l2.
        settings: of the method, as `python -m search methods NAME` lists them.
        space: bounds of the widths; None takes the defaults.

    Raises:
        BudgetError: a budget that no narrower network meets, or one on latency, which needs a search.
        PruningError: the method trains, or needs labels that the samples lack.
        TraceError: the network cannot be followed, or takes other inputs than `images` has.
        DataError: fewer than two samples.
    """
    chosen = cutting_method(method, settings)
    budgets = parse_budgets((budget,) if isinstance(budget, str) else tuple(budget))
    calibration = Calibration.of(net, images, space)
    goal = Goal(budgets=absolute(budgets, calibration.space))
    return cut(calibration, calibration.suited(chosen), goal, calibration.context())


def cutting_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """Return a method that cuts before any training.

    Raises:
        PruningError: it trains.
        SettingError: it has no such setting, or a value is not one of its own.
    """
    kind = METHODS[name]
    declared = {name: declared_settings(kind)}
    read = parse_settings(name, settings or {}, declared)
    if not screenable(kind, read):
        able = ", ".join(other for other in sorted(METHODS) if screenable(METHODS[other], {}))
        raise PruningError(f"method {name!r} trains while it cuts; take one that does not ({able}), or a search")
    built: Method = kind(**read)
    return built


def absolute(budgets: Sequence[Budget], space: SearchSpace) -> tuple[Budget, ...]:
    """Return budgets resolved for a network.

    Raises:
        BudgetError: the smallest network is over one of them, or one limits latency.
    """
    if any(budget.quantity == "latency" for budget in budgets):
        raise BudgetError("a latency budget needs a search, which measures; give a limit on another cost here")
    resolved = tuple(budget.resolve(space.dense_cost) for budget in budgets)
    space.fit(uniform_ratios(space), resolved)
    return resolved


def cut(calibration: Calibration, method: Method, goal: Goal, context: Context) -> Pruned:
    """Cut the network of a calibration by a method that cuts before any training."""
    space = calibration.space
    if context.prepared is None:
        context.prepared = method.prepare(calibration.net, space, context)
    snapshot = next(iter(method.run(calibration.net, space, goal, context)))
    counted = checked_cost(snapshot, space)
    narrow = taking_inputs(copy.deepcopy(snapshot.net)).eval()
    selection: Mapping[str, Tensor] = snapshot.selection or {}
    counted = dataclasses.replace(counted, size=file_size(narrow, CHECKPOINT, space, snapshot.widths, None))
    return Pruned(narrow, counted, space.dense_cost, snapshot.widths, selection, space)


def checked_cost(snapshot: Snapshot, space: SearchSpace) -> Cost:
    """Return the counted cost of a narrow network.

    Raises:
        PruningError: its widths promise another.
    """
    counted, promised = count_cost(snapshot.net, space.input_shape), snapshot.cost or space.cost(snapshot.widths)
    if not counted.agrees(promised):
        raise PruningError(f"the narrow net costs {counted}, and its widths promise {promised}; the method is at fault")
    return counted
