"""The tables of a report: the facts about a network are brought together once for terminal, HTML, CSV and MLflow."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.latency.meter import REFERENCE
from runners.trial import TrialResult
from search.reporting.latency import latency_cells, latency_columns
from search.reporting.wording import ROWS_SHOWN, TextTable, in_bytes, percent, plural, scaled, short, training_text
from search.results.comparison import confirmed_figures, reached_on_test
from search.results.rank_correlation import LEAST, Band, RungAudit
from search.results.result import SearchResult, best_at_text
from search.results.score_names import score_columns, with_score_names
from spaces.cost import Cost

CSV_COLUMNS = (
    "trial method baseline flops flops_of_dense params activations_bytes size_bytes "
    "val_accuracy test_accuracy val_top5 test_top5 test_mean test_std test_seeds "
    "seconds path settings widths best_at training cut_from final_epochs searched_accuracy"
).split()
MLFLOW_COLUMNS = (
    "trial flops percent_of_dense params activations_bytes size_bytes "
    "val_accuracy test_accuracy val_top5 test_top5 test_mean test_std test_seeds method baseline "
    "chosen best_at"
).split()
# Quantity that is counted in bytes -> head of its column.
BYTE_HEADS = {"activations": "activations", "size": "on disk"}


@dataclass(frozen=True)
class NetworkRow:
    """A network of the report, in finished texts but for its cost.

    Attributes:
        test: mean and deviation where the network was trained again.
        megabytes: 10^6 bytes of the stored weights: the size that the method has noted, else of float32.
        latency: cells under `latency_heads`.
        label: of the trial and its intermediate network; empty for the dense network, whose method is "dense".
        width_changes: the width of each group before ("?" where it is not known) and after.
    """

    method: str
    cost: Cost
    of_dense: str
    validation: str
    test: str
    megabytes: str
    latency: Sequence[str]
    label: str = ""
    baseline: str = ""
    width_changes: Sequence[str] = ()
    training: str = ""
    chosen: bool = False

    @property
    def name(self) -> str:
        """The network in one line: trial, method, baseline and fine-tuning."""
        named = f"trial {self.label}: {self.method_name}" if self.label else self.method
        return named + (f", {self.training}" if self.training else "")

    @property
    def method_name(self) -> str:
        """The method, with the widths of a baseline in brackets."""
        return self.method + (f" ({self.baseline} widths)" if self.baseline else "")


def dense_row(result: SearchResult) -> NetworkRow:
    """Return the row of the dense network."""
    dense, latency = result.dense, latency_cells(result, REFERENCE)
    accuracies = percent(dense.val_accuracy), percent(dense.test_accuracy)
    return NetworkRow("dense", dense.cost, "100.0%", *accuracies, _megabytes(dense.cost), latency)


def network_row(result: SearchResult, network: TrialResult) -> NetworkRow:
    """Return the row of a measured network; one without a cost is a ValueError."""
    cost, trial, before = network.cost, network.trial, _dense_widths(result)
    if cost is None:
        raise ValueError(f"trial {network.label} is {network.state} and has no cost to report")
    return NetworkRow(
        method=trial.method,
        cost=cost,
        of_dense=percent(cost.flops / result.dense.cost.flops, 1),
        validation=percent(network.accuracy),
        test=reached_on_test(network),
        megabytes=_megabytes(cost, network.note.get("size_mb")),
        latency=latency_cells(result, network.label),
        label=network.label,
        baseline=trial.baseline,
        width_changes=[f"{group} {before.get(group, '?')}→{width}" for group, width in (network.widths or {}).items()],
        training=training_text(trial.training),
        chosen=result.is_chosen(network),
    )


def front_rows(result: SearchResult) -> list[NetworkRow]:
    """Return the dense network and the front, most accurate first."""
    return [dense_row(result), *(network_row(result, member) for member in reversed(result.front.members))]


def byte_heads(result: SearchResult) -> list[str]:
    """Return the heads of `byte_cells`: what budgets limit in bytes."""
    return [head for quantity, head in BYTE_HEADS.items() if any(b.quantity == quantity for b in result.budgets)]


def byte_cells(result: SearchResult, cost: Cost) -> list[str]:
    """Return the amounts in bytes of a network that budgets of the search limit."""
    heads = byte_heads(result)
    return [in_bytes(getattr(cost, quantity)) for quantity, head in BYTE_HEADS.items() if head in heads]


def quantised(rows: Sequence[NetworkRow]) -> bool:
    """Return whether a network stores its weights in other than four bytes each."""
    return any(row.megabytes != _megabytes(row.cost) for row in rows)


def front_table(result: SearchResult) -> TextTable:
    """Tabulate the dense network and the front, most accurate first; the chosen network is marked.

    What budgets limit in bytes stands in the place of the parameters. Where a terminal is too narrow for the table, the
    methods wrap and every number stays whole.
    """
    rows = front_rows(result)
    sized = quantised(rows)
    cells: list[tuple[str, ...]] = []
    for row in rows:
        cost = [scaled(row.cost.flops), row.of_dense, *(byte_cells(result, row.cost) or [scaled(row.cost.params)])]
        cost += [row.megabytes] if sized else []
        method = f"{row.baseline} {row.method}".lstrip()
        cells.append((*cost, row.validation, row.test, method, row.label, "chosen" if row.chosen else ""))
    title = f"Pareto front: {plural(len(result.front), 'network')}, {result.score_name} on val and test"
    counted = [f">{head}" for head in byte_heads(result)] or [">params"]
    costs = (">FLOPs", ">of dense", *counted, *([">MB"] if sized else []))
    columns = (*costs, ">val", ">test", "method", ">trial", "")
    styles = {index: "bold green" for index, row in enumerate(rows) if row.chosen}
    return TextTable(title, columns, cells, styles=styles, parted=True)


def widths_table(result: SearchResult, network: TrialResult) -> TextTable:
    """Tabulate the widths of a network before and after, group by group."""
    layers = {row["group"]: str(len(row.get("layers", ()))) for row in result.space.get("groups", [])}
    widths, dense_widths = dict(network.widths or {}), _dense_widths(result)
    rows: list[tuple[str, ...]] = []
    for group, after in list(widths.items())[:ROWS_SHOWN]:
        before = dense_widths.get(group, after)
        bar = "#" * max(1, round(20 * after / before))
        rows.append((group, layers.get(group, ""), str(before), str(after), percent(after / before, 0), bar))
    if len(widths) > ROWS_SHOWN:
        rows.append((f"... and {len(widths) - ROWS_SHOWN} more", *[""] * 5))
    columns = ("group", ">layers", ">before", ">after", ">kept", "")
    return TextTable(f"Widths of trial {network.label}", columns, rows)


def rank_correlation_table(result: SearchResult) -> TextTable | None:
    """Tabulate the rank correlation of rungs, and of the proxy before training, with the end of training.

    None where there is nothing to show. A dash stands for one over fewer than `LEAST` trials, or where nothing varies.
    """
    audits = [audit for audit in (result.screening_audit, *result.rung_audits) if audit is not None and audit.trials]
    if not audits:
        return None

    def cell(part: Band | RungAudit) -> str:
        known = part.correlation is not None and part.trials >= LEAST
        return f"{f'{part.correlation:.2f}' if known else '-'} ({part.trials})"

    rows = []
    for audit in audits:
        epochs = str(audit.epochs) if audit.epochs else "0 (before training)"
        rows.append((epochs, *map(cell, audit.bands), cell(audit)))
    bands = [f">{short(band.flops[0])} to {short(band.flops[1])}" for band in audits[0].bands]
    title = "Proxy audit: rank correlation of a rung with the end of training, by cost (trials)"
    return TextTable(title, (">epochs", *bands, ">within all"), rows, spaced=True)


def reported_values(result: SearchResult) -> list[dict[str, Any]]:
    """Return the reported networks, cheapest first, as name -> plain value, with the latency columns last."""
    dense = result.dense.cost.flops
    return [
        {
            "trial": network.label,
            "method": network.trial.method,
            "baseline": network.trial.baseline,
            "flops": network.cost.flops,
            "flops_of_dense": f"{network.cost.flops / dense:.6f}",
            "percent_of_dense": round(100 * network.cost.flops / dense, 2),
            "params": network.cost.params,
            "activations_bytes": network.cost.activations,
            "size_bytes": network.cost.size,
            "val_accuracy": network.accuracy,
            "test_accuracy": network.test_accuracy,
            "val_top5": network.val_top5,
            "test_top5": network.test_top5,
            **confirmed_figures(network),
            "seconds": f"{network.seconds:.3f}",
            "path": network.path,
            "settings": json.dumps(dict(network.trial.settings), sort_keys=True),
            "widths": network.widths.to_json() if network.widths else "",
            "chosen": result.is_chosen(network),
            "best_at": best_at_text(result, network),
            "training": json.dumps(dict(network.trial.training), sort_keys=True),
            "cut_from": network.trial.parent or "dense",
            "final_epochs": network.final_epochs,
            "searched_accuracy": network.searched_accuracy,
            **latency_columns(result, network.label),
        }
        for network in result.reported
        if network.cost is not None
    ]


def front_columns(result: SearchResult) -> dict[str, list[Any]]:
    """Return the reported networks as columns, for MLflow; none where there is no network."""
    rows = reported_values(result)
    names = [*MLFLOW_COLUMNS, *latency_columns(result, REFERENCE)] if rows else []
    return with_score_names({name: [row[name] for row in rows] for name in names}, result.score_name)


def write_csv(result: SearchResult, path: Path) -> None:
    """Write the front, cheapest first: counts as whole numbers, accuracies as shares, widths as JSON.

    Networks that are the best at a target without being on the front come after it.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        names = [*CSV_COLUMNS, *latency_columns(result, REFERENCE)]
        writer = csv.DictWriter(file, score_columns(names, result.score_name), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(with_score_names(values, result.score_name) for values in reported_values(result))


def _dense_widths(result: SearchResult) -> dict[str, int]:
    return {row["group"]: row["width"] for row in result.space.get("groups", [])}


def _megabytes(cost: Cost, noted: float | None = None) -> str:
    return f"{4 * cost.params / 1e6 if noted is None else noted:.4g}"
