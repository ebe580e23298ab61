"""What a user reads at the end: the front, the chosen network, how they compare, and where everything is.

Tables are rich renderables. Lines that someone may copy (paths, commands) are `str`: the display prints them unwrapped.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from runners.latency.meter import REFERENCE
from runners.trial import TrialResult, TrialState
from search.reporting.latency import figures, latency_lines, latency_tables
from search.reporting.rungs import audit_table, rung_lines
from search.reporting.screening import screening_lines
from search.reporting.targets import TARGET_HEADS, target_lines, target_rows
from search.reporting.training import training_lines
from search.reporting.wording import ROWS_SHOWN, duration, percent, plural, scaled, titled_table
from search.results.comparison import confirmed_figures, failed_again, reached_on_test
from search.results.result import SearchResult, best_at_text
from search.schedulers.stopping import ending
from spaces.cost import Cost


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
    title = f"Pareto front: {plural(len(result.front), 'network')}, accuracy on val and test"
    sized = [">MB"] if quantised(result) else []
    columns = (">FLOPs", ">of dense", ">params", *sized, ">val", ">test", "method", ">trial", "")
    table = titled_table(title, *columns)
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
            f"{trial.baseline} {trial.method}".lstrip(),
            member.label,
            "chosen" if is_chosen else "",
            style="bold green" if is_chosen else None,
        )
    return table


def targets_table(result: SearchResult) -> Table:
    """Tabulate the answer to each target, the largest first, beside uniform widths there."""
    table = titled_table("Best at each target", *TARGET_HEADS)
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
    table = titled_table(title, "group", ">layers", ">before", ">after", ">kept", "")
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
    lines = [f"{plural(len(failed), 'trial')} failed:"] if failed else []
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
    return (member.label, trial.method, trial.baseline, *counts, *accuracies, *end)
