"""What a user reads: the plan before any work, and the outcome at the end.

Tables are rich renderables. Lines that someone may copy (paths, commands) are `str`: the display prints them unwrapped.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from configs.schema import RunConfig
from pruning.base import parse_methods
from runners.latency import REFERENCE
from runners.trial import TrialResult, TrialState
from search.answers import TARGET_HEADS, target_lines, target_rows
from search.comparison import confirmed_figures, failed_again, reached_on_test
from search.latency import figures, latency_lines, latency_tables, planned
from search.pareto import LATENCY
from search.result import SearchResult, best_at_text
from search.rung_report import audit_table, rung_lines, rungs_text
from search.screening_report import screening_lines
from search.time_limit import ending
from search.training_settings import training_lines
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.space import SearchSpace

ROWS_SHOWN = 24  # of a table that grows with the network; a DenseNet has over a hundred groups
_UNITS = ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k"))


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


def scaled(count: float, unit: str = "") -> str:
    """Write a count with its unit and four digits, e.g. 557,892,000 FLOPs as "557.9 MFLOPs"."""
    factor, prefix = next(((f, p) for f, p in _UNITS if count >= f), (1, ""))
    value = count / factor
    digits = 0 if factor == 1 else max(0, 3 - len(str(int(value))) + 1)
    return f"{value:.{digits}f} {prefix}{unit}".rstrip()


def percent(share: float | None, digits: int = 2) -> str:
    """Write a share in [0, 1] as a percentage, and nothing known as a dash."""
    return "-" if share is None else f"{100 * share:.{digits}f}%"


def duration(seconds: float) -> str:
    """Write seconds as a person would: "42 s", "3 min 05 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


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
        "images": f"{config.data.data}, {'x'.join(str(side) for side in space.input_shape)}: "
        + ", ".join(f"{number:,} {split}" for split, number in plan.images.items()),
        "dense cost": _cost(dense),
        "reachable": f"{_cost(least)} ({percent(least.flops / dense.flops, 1)} of the dense FLOPs)",
        "budget": " and ".join(_budget(budget, dense) for budget in plan.budgets),
        "targets": "; ".join(_budget(target, dense) for target in plan.targets),
        **planned(config, plan.budgets, plan.dense_seconds),
        "methods": f"{', '.join(parse_methods(config.method))}, and the uniform control arm{settings}",
        "trials": f"{config.trials}, sampler {config.sampler}, {_plural(config.train.epochs, 'epoch')} each"
        + (f" but where searched ({config.search_training})" if config.search_training else "")
        + rungs_text(config)
        + (f"; then the front {config.confirm} times more" if config.confirm > 1 else ""),
        "runner": f"{_plural(plan.workers, 'worker')} with {_plural(plan.threads, 'thread')} each",
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
    return f"trained here for {_plural(config.train.dense_epochs, 'epoch')} unless cached"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


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
    title = f"{_plural(len(groups), 'group')} of channels may vary ({_plural(layers, 'layer')})"
    table = _table(title, "group", ">layers", ">width", ">from", ">to", ">in steps of")
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


def summary(result: SearchResult, folder: Path, mlflow: str) -> list[RenderableType]:
    """Show the outcome: the front, the chosen net, the honest comparison, failures, and where everything is.

    Args:
        mlflow: the command or address that opens MLflow on this run; empty leaves the line out.
    """
    parts: list[RenderableType] = [""]
    if early := ending(result):
        parts += [early, ""]
    parts.append(front_table(result))
    if result.targets:
        parts += ["", targets_table(result)]
    parts += training_lines(result)
    chosen = result.chosen
    if chosen is not None and chosen.widths is not None:
        parts += ["", widths_table(result, chosen)]
    parts += [*latency_tables(result), *latency_lines(result)]
    if (audited := audit_table(result)) is not None:
        parts += ["", audited]
    again = (*result.reported, result.control, *result.target_controls.values())
    failures = [*failure_lines(result.results), *failed_again(*again)]
    parts += ["", result.uniform_comparison.statement, *target_lines(result), *rung_lines(result)]
    parts += [*screening_lines(result), *failures, ""]
    parts += paths_lines(result.paths, folder)
    if mlflow:
        parts.append(f"MLflow: {mlflow}")
    parts.append(f"Done in {duration(result.seconds)}.")
    return parts


def front_table(result: SearchResult) -> Table:
    """Tabulate the dense network and the front, most accurate first; the chosen network is marked.

    Where a terminal is too narrow for it, the methods wrap and every figure stays whole.
    """
    dense = result.dense
    title = f"Pareto front: {_plural(len(result.front), 'network')}, accuracy on val and test"
    sized = [">MB"] if quantised(result) else []
    columns = (">FLOPs", ">of dense", ">params", *sized, ">val", ">test", "method", ">trial", "")
    table = _table(title, *columns)
    accuracies = (percent(dense.val_accuracy), percent(dense.test_accuracy))
    counts = [scaled(dense.cost.flops), "100.0%", scaled(dense.cost.params)]
    counts += [megabytes(dense.cost)] if sized else []
    table.add_row(*counts, *accuracies, "dense", "", "")
    table.add_section()
    for member in reversed(result.front.members):
        if member.cost is None:
            continue
        cost, trial = member.cost, member.trial
        is_chosen = result.is_chosen(member)
        table.add_row(
            scaled(cost.flops),
            percent(cost.flops / dense.cost.flops, 1),
            scaled(cost.params),
            *([megabytes(cost, member)] if sized else []),
            percent(member.accuracy),
            reached_on_test(member),
            f"{trial.arm} {trial.method}".lstrip(),
            member.label,
            "chosen" if is_chosen else "",
            style="bold green" if is_chosen else None,
        )
    return table


def targets_table(result: SearchResult) -> Table:
    """Tabulate the answer to each target, the largest first, beside uniform widths there."""
    table = _table("Best at each target", *TARGET_HEADS)
    for row in target_rows(result):
        table.add_row(*map(escape, row))
    return table


def quantised(result: SearchResult) -> bool:
    """Tell whether a network of the front stores its weights in other than four bytes each."""
    return any(each.cost and megabytes(each.cost) != megabytes(each.cost, each) for each in result.front)


def megabytes(cost: Cost, member: TrialResult | None = None) -> str:
    """Write how many 10^6 bytes the stored weights take: what the method has noted, else float32."""
    size = 4 * cost.params / 1e6
    return f"{size if member is None else float(member.note.get('size_mb', size)):.4g}"


def dense_widths(result: SearchResult) -> dict[str, int]:
    """Return group -> dense width from the result's summary of the space."""
    return {row["group"]: row["width"] for row in result.space.get("groups", [])}


def widths_table(result: SearchResult, member: TrialResult) -> Table:
    """Tabulate the widths of a network, layer group by layer group, before and after."""
    title = f"Widths of trial {member.label}"
    table = _table(title, "group", ">layers", ">before", ">after", ">kept", "")
    layers = {row["group"]: len(row.get("layers", ())) for row in result.space.get("groups", [])}
    dense: Mapping[str, int] = dense_widths(result)
    widths: Mapping[str, int] = member.widths or {}
    for name in list(widths)[:ROWS_SHOWN]:
        before, after = dense.get(name, widths[name]), widths[name]
        bar = "#" * max(1, round(20 * after / before))
        numbers = (str(layers.get(name, "")), str(before), str(after), percent(after / before, 0))
        table.add_row(escape(name), *numbers, bar)
    if len(widths) > ROWS_SHOWN:
        table.add_row(f"... and {len(widths) - ROWS_SHOWN} more")
    return table


def failure_lines(results: Iterable[TrialResult]) -> list[str]:
    """Say which trials failed and why, one line per trial."""
    failed = [result for result in results if result.state is TrialState.FAILED]
    lines = [f"{_plural(len(failed), 'trial')} failed:"] if failed else []
    return lines + [f"  trial {r.trial.number} ({r.trial.method}): {' '.join(r.error.split())}" for r in failed]


def paths_lines(paths: Mapping[str, str], folder: Path) -> list[str]:
    """List what was written and where."""
    width = max((len(name) for name in paths), default=0)
    return [f"Written to {folder}:", *[f"  {name:<{width}}  {folder / path}" for name, path in paths.items()]]


def write_csv(result: SearchResult, path: Path) -> None:
    """Write the front, cheapest first: counts as whole numbers, accuracies as shares, widths as JSON.

    What is best at a target and not on the front comes after it.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = "trial method arm flops flops_of_dense params val_accuracy test_accuracy test_mean test_std test_seeds"
        writer.writerow(
            [
                *names.split(),
                "seconds",
                "path",
                "settings",
                "widths",
                "best_at",
                "training",
                *figures(result, REFERENCE),
            ]
        )
        for member in result.reported:
            row = (*_csv_row(member, result.dense.cost.flops), best_at_text(result, member))
            row += (json.dumps(dict(member.trial.training), sort_keys=True),)
            writer.writerow([*row, *figures(result, member.label).values()])


def _csv_row(member: TrialResult, dense_flops: int) -> Sequence[Any]:
    trial, cost = member.trial, member.cost
    counts = (cost.flops, f"{cost.flops / dense_flops:.6f}", cost.params) if cost else ("", "", "")
    accuracies = (member.accuracy, member.test_accuracy, *confirmed_figures(member).values())
    widths = member.widths.to_json() if member.widths else ""
    end = (f"{member.seconds:.3f}", member.path, json.dumps(dict(trial.settings), sort_keys=True), widths)
    return (member.label, trial.method, trial.arm, *counts, *accuracies, *end)


def _table(title: str, *columns: str) -> Table:
    """Make an empty table; a column name that starts with ">" is aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.collapse_padding = True
    for name in columns:
        is_number = name.startswith(">")
        justify: Literal["right", "left"] = "right" if is_number else "left"
        table.add_column(name.lstrip(">"), justify=justify, overflow="fold", no_wrap=is_number)
    return table
