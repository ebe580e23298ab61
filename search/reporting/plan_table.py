"""Plan: what a search is about to do, and how it is shown before any work."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from configs.schema import RunConfig
from search.reporting.latency import planned
from search.reporting.rungs import rungs_text
from search.reporting.wording import ROWS_SHOWN, duration, percent, plural, scaled, titled_table
from search.results.pareto import LATENCY
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.space import SearchSpace


@dataclass(frozen=True)
class Plan:
    """What a search is about to do.

    Attributes:
        budgets: absolute.
        targets: absolute, the largest first; none unless asked for.
        images: split -> number of images.
        workers: trials that run at once; threads: of each.
        seconds: estimated wall time; None when nothing is known.
        folder: where everything will be written.
        dense_seconds: latency of the dense network, once measured.
        epochs: of training that all trials together are expected to take, where they grow through rungs.
    """

    config: RunConfig
    space: SearchSpace
    budgets: tuple[Budget, ...]
    images: Mapping[str, int]
    workers: int
    threads: int
    folder: Path
    seconds: float | None = None
    dense_seconds: float | None = None
    targets: tuple[Budget, ...] = ()
    epochs: float = 0.0

    @property
    def reference(self) -> float:
        """What the dense network costs along the axis of the front; 0 for a latency that is not known."""
        return self.dense_seconds or 0.0 if self.config.objective.endswith(LATENCY) else self.space.dense_cost.flops


def plan_table(plan: Plan) -> RenderableType:
    """Show the plan: costs, budgets, what may vary and what may not, trials, workers, time, folder."""
    return Group(plan_facts(plan), "", _variable_table(plan.space), *_fixed_lines(plan.space), "")


def plan_facts(plan: Plan) -> Table:
    """Show what a run is about in a line each."""
    config, space = plan.config, plan.space
    dense, least = space.dense_cost, space.smallest_cost
    settings = f", fixed: {', '.join(config.set)}" if config.set else ""
    rows = {
        "model": f"{config.model}, {_weights_source(config)}",
        "images": f"{config.data.name}, {'x'.join(str(side) for side in space.input_shape)}: "
        + ", ".join(f"{number:,} {split}" for split, number in plan.images.items()),
        "dense cost": _cost(dense),
        "reachable": f"{_cost(least)} ({percent(least.flops / dense.flops, 1)} of the dense FLOPs)",
        "budget": " and ".join(_budget(budget, dense) for budget in plan.budgets),
        "targets": "; ".join(_budget(target, dense) for target in plan.targets),
        **planned(config, plan.budgets, plan.dense_seconds),
        "methods": f"{', '.join(config.methods)}, and the uniform control arm{settings}",
        "trials": f"{config.trials}, sampler {config.sampler}, {plural(config.train.epochs, 'epoch')} each"
        + (f" but where searched ({config.search_training})" if config.search_training else "")
        + rungs_text(config)
        + (f"; then the front {config.confirm} times more" if config.confirm > 1 else ""),
        "runner": f"{plural(plan.workers, 'worker')} with {plural(plan.threads, 'thread')} each",
        "time": ("unknown" if plan.seconds is None else f"about {duration(plan.seconds)}")
        + (f"; the limit is {config.time_limit}" if config.time_limit else ""),
        "folder": str(plan.folder),
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in rows.items():
        if text:
            table.add_row(name, escape(text))
    return table


def _weights_source(config: RunConfig) -> str:
    if config.weights:
        return f"weights {config.weights}"
    return f"trained here for {plural(config.train.dense_epochs, 'epoch')} unless cached"


def _cost(cost: Cost) -> str:
    return f"{scaled(cost.flops, 'FLOPs')}, {scaled(cost.params, 'params')}"


def _budget(budget: Budget, dense: Cost) -> str:
    if budget.quantity == "latency":
        return f"at most {budget.limit * 1e3:g} ms"
    name = "FLOPs" if budget.quantity == "flops" else budget.quantity
    share = budget.limit / getattr(dense, budget.quantity)
    return f"at most {scaled(budget.limit, name)} ({percent(share, 1)} of dense)"


def _variable_table(space: SearchSpace) -> Table:
    groups = space.variable
    layers = sum(len(group.producers) for group in groups)
    title = f"{plural(len(groups), 'group')} of channels may vary ({plural(layers, 'layer')})"
    table = titled_table(title, "group", ">layers", ">width", ">from", ">to", ">in steps of")
    for group in groups[:ROWS_SHOWN]:
        numbers = (len(group.producers), group.width, group.lowest, group.ceiling, group.divisor)
        table.add_row(escape(group.name), *map(str, numbers))
    if len(groups) > ROWS_SHOWN:
        table.add_row(f"... and {len(groups) - ROWS_SHOWN} more")
    return table


def _fixed_lines(space: SearchSpace) -> Iterator[str]:
    """Yield one line per reason why layers keep their width."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for layer in space.layers_fixed:
        by_reason[layer.reason].append(layer.name)
    for group in space.groups:
        if group.fixed:
            by_reason[group.fixed].extend(group.producers)
    for reason, layers in by_reason.items():
        names = list(dict.fromkeys(layers))  # a layer may be known both by itself and as a group
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        yield escape(f"keeps its width: {', '.join(names[:6])}{more} ({reason})")
