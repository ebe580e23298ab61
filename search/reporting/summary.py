"""The summary of a finished search on the terminal: the front, the chosen network, the comparison, the places."""

import json
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from search.reporting.final_training import final_training_statements, final_training_table
from search.reporting.latency import latency_statements, latency_table
from search.reporting.page.int8 import int8_statements, int8_table
from search.reporting.rows import front_table, rank_correlation_table, widths_table
from search.reporting.statements import (
    baseline_statements,
    dense_statement,
    ending,
    failure_statements,
    rung_statements,
    screening_statements,
    training_statements,
)
from search.reporting.targets import target_statements, targets_table
from search.reporting.wording import TextTable, duration, percent
from search.results.comparison import failed_again
from search.results.result import SearchResult
from search.results.serialization import trial_result_to_dict

SHOWN_KEYS = ("chosen", "front", "targets", "best_at_targets", "paths", "seconds")  # of result.json
# Of the results in `result.json`.
NETWORK_KEYS = ("accuracy", "test_accuracy", "val_top5", "test_top5", "cost", "widths", "final_epochs", "path")


def summary(result: SearchResult, folder: Path, tracking: str) -> list[RenderableType]:
    """Show the outcome: the front, the chosen network, the comparison with the best baseline, failures, and all places.

    Lines that someone may copy (paths, commands) are `str`, which is printed unwrapped.

    Args:
        tracking: the command or address that opens the tracked run; empty leaves the line out.
    """
    early, chosen = ending(result), result.chosen
    parts: list[RenderableType] = ["", early] if early else []
    parts += ["", front_table(result)]
    parts += [*_below(targets_table(result)), *_below(final_training_table(result)), *training_statements(result)]
    parts += _below(widths_table(result, chosen) if chosen is not None and chosen.widths is not None else None)
    parts += [*_below(latency_table(result)), *latency_statements(result)]
    parts += [*_below(int8_table(result.int8)), *int8_statements(result.int8), *_below(rank_correlation_table(result))]
    parts += ["", result.baseline_comparison.statement, *top5_statements(result), *target_statements(result)]
    parts += final_training_statements(result)
    parts += filter(None, [dense_statement(result.dense.learning_curve)])
    parts += [*rung_statements(result), *screening_statements(result)]
    parts += [*baseline_statements(result), *failure_statements(result.results)]
    parts += [*failed_again(*result.reported, result.retrained_baseline, *result.target_baselines.values()), ""]
    return [*parts, *_places(result, folder, tracking)]


def top5_statements(result: SearchResult) -> list[str]:
    """Return a line with the top-5 accuracy of the chosen network on test, where it was read."""
    chosen, dense = result.chosen, result.dense.test_top5
    if chosen is None or chosen.test_top5 is None:
        return []
    return [f"Top-5 on test: {percent(chosen.test_top5)} (dense {percent(dense)})."]


def final_lines(result: SearchResult, folder: Path, tracking: str) -> list[RenderableType]:
    """Show the outcome without tables: why the search ended, the chosen network, targets, failures, and all places."""
    early = ending(result)
    parts: list[RenderableType] = [early] if early else []
    parts += [result.baseline_comparison.statement, *target_statements(result), *failure_statements(result.results)]
    return [*parts, *_places(result, folder, tracking)]


def summary_json(result: SearchResult, folder: Path) -> str:
    """Write the outcome as one JSON object for programs: the keys and values of result.json, and its networks by label.

    `networks` holds every network that `chosen`, `front` or `best_at_targets` name by label; `folder` is the run
    folder, to which all paths are relative.
    """
    whole = result.to_dict()
    networks: dict[str, Any] = {}
    for network in (*result.reported, result.chosen, *(result.best_at(t, baselines=True) for t in result.targets)):
        if network is not None:
            plain = trial_result_to_dict(network)
            networks[network.label] = {"method": network.trial.method} | {key: plain[key] for key in NETWORK_KEYS}
    shown = {"folder": str(folder)} | {key: whole[key] for key in SHOWN_KEYS} | {"networks": networks}
    return json.dumps(shown, indent=1, allow_nan=False)


def _places(result: SearchResult, folder: Path, tracking: str) -> list[RenderableType]:
    """Show where everything was written, and how long the search took."""
    width = max(map(len, result.paths), default=0)
    parts: list[RenderableType] = [
        f"Written to {folder}:",
        *[f"  {name:<{width}}  {folder / path}" for name, path in result.paths.items()],
    ]
    if tracking:
        parts.append(f"MLflow: {tracking}")
    return [*parts, f"Done in {duration(result.seconds)}."]


def _below(table: TextTable | None) -> list[RenderableType]:
    return [] if table is None else ["", table]
