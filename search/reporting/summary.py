"""The summary of a finished search on the terminal: the front, the chosen network, the comparison, the places.

Tables are rich renderables. Lines that someone may copy (paths, commands) are `str`, which is printed unwrapped.
"""

from collections.abc import Mapping
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from search.reporting.latency import latency_statements
from search.reporting.rows import front_rows, latency_table, quantised, rank_correlation_table, widths_table
from search.reporting.statements import (
    ending,
    failure_statements,
    rung_statements,
    screening_statements,
    training_statements,
)
from search.reporting.targets import target_statements, targets_table
from search.reporting.wording import duration, plural, scaled, titled_table
from search.results.comparison import failed_again
from search.results.result import SearchResult


def summary(result: SearchResult, folder: Path, tracking: str) -> list[RenderableType]:
    """Show the outcome: the front, the chosen network, the comparison with uniform widths, failures, and all places.

    Args:
        tracking: the command or address that opens the tracked run; empty leaves the line out.
    """
    parts: list[RenderableType] = [""]
    if early := ending(result):
        parts += [early, ""]
    parts.append(front_table(result))
    if (targets := targets_table(result)) is not None:
        parts += ["", targets.rich()]
    parts += training_statements(result)
    if result.chosen is not None and result.chosen.widths is not None:
        parts += ["", widths_table(result, result.chosen).rich()]
    if (latency := latency_table(result)) is not None:
        parts += ["", latency.rich(spaced=True)]
    parts += latency_statements(result)
    if (correlations := rank_correlation_table(result)) is not None:
        parts += ["", correlations.rich(spaced=True)]
    parts += ["", result.baseline_comparison.statement, *target_statements(result)]
    parts += [*rung_statements(result), *screening_statements(result), *failure_statements(result.results)]
    parts += [*failed_again(*result.reported, result.retrained_baseline, *result.target_baselines.values()), ""]
    parts += _places(result.paths, folder)
    if tracking:
        parts.append(f"MLflow: {tracking}")
    return [*parts, f"Done in {duration(result.seconds)}."]


def front_table(result: SearchResult) -> Table:
    """Tabulate the dense network and the front, most accurate first; the chosen network is marked.

    Where a terminal is too narrow for it, the methods wrap and every number stays whole.
    """
    rows = front_rows(result)
    sized = quantised(rows)
    title = f"Pareto front: {plural(len(result.front), 'network')}, accuracy on val and test"
    columns = (">FLOPs", ">of dense", ">params", *([">MB"] if sized else []), ">val", ">test", "method", ">trial", "")
    table = titled_table(title, *columns)
    for row in rows:
        table.add_row(
            scaled(row.cost.flops),
            row.of_dense,
            scaled(row.cost.params),
            *([row.megabytes] if sized else []),
            row.validation,
            row.test,
            f"{row.baseline} {row.method}".lstrip(),
            row.label,
            "chosen" if row.chosen else "",
            style="bold green" if row.chosen else None,
            end_section=row is rows[0],
        )
    return table


def _places(paths: Mapping[str, str], folder: Path) -> list[str]:
    """Name the place of everything that was written."""
    width = max(map(len, paths), default=0)
    return [f"Written to {folder}:", *[f"  {name:<{width}}  {folder / path}" for name, path in paths.items()]]
