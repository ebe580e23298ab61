"""The tables of a report: the facts about a network are brought together once for terminal, HTML, CSV and MLflow."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runners.latency.meter import REFERENCE
from runners.trial import TrialResult
from search.reporting.latency import latency_cells, latency_columns, reading_cells, readings
from search.reporting.wording import ROWS_SHOWN, TextTable, percent, short, training_text
from search.results.comparison import confirmed_figures, reached_on_test
from search.results.rank_correlation import LEAST
from search.results.result import SearchResult, best_at_text
from spaces.cost import Cost

CSV_COLUMNS = (
    "trial method baseline flops flops_of_dense params val_accuracy test_accuracy test_mean test_std test_seeds "
    "seconds path settings widths best_at training"
).split()
MLFLOW_COLUMNS = (
    "trial flops percent_of_dense params val_accuracy test_accuracy test_mean test_std test_seeds method baseline "
    "chosen best_at"
).split()


@dataclass(frozen=True)
class NetworkRow:
    """A network of the report.

    Attributes:
        label: of the trial and its intermediate network; empty for the dense network.
        method: "dense" for the dense network.
        flops_share: of the dense FLOPs.
        accuracy: on validation.
        test: accuracy on test, as text: mean and deviation where the network was trained again.
        megabytes: 10^6 bytes of the stored weights, as text: the size that the method has noted, else of float32.
        latency: texts under `latency_heads`.
        widths: group -> width before (None where it is not known) and after.
        training: searched fine-tuning settings, as text.
    """

    label: str
    method: str
    cost: Cost
    flops_share: float
    accuracy: float | None
    test: str
    megabytes: str
    baseline: str = ""
    latency: tuple[str, ...] = ()
    widths: Mapping[str, tuple[int | None, int]] = field(default_factory=dict)
    training: str = ""
    chosen: bool = False

    @property
    def name(self) -> str:
        """The network in one line: trial, method, baseline and fine-tuning."""
        if not self.label:
            return self.method
        return f"trial {self.label}: {self.method_name}" + (f", {self.training}" if self.training else "")

    @property
    def method_name(self) -> str:
        """The method, with the baseline in brackets."""
        return self.method + (f" ({self.baseline})" if self.baseline else "")

    @property
    def of_dense(self) -> str:
        """The share of the dense FLOPs."""
        return percent(self.flops_share, 1)

    @property
    def validation(self) -> str:
        """The accuracy on validation."""
        return percent(self.accuracy)

    @property
    def width_changes(self) -> list[str]:
        """The width of each group before and after."""
        return [f"{g} {'?' if before is None else before}→{after}" for g, (before, after) in self.widths.items()]


def dense_row(result: SearchResult) -> NetworkRow:
    """Return the row of the dense network."""
    dense, latency = result.dense, tuple(latency_cells(result, REFERENCE))
    test = percent(dense.test_accuracy)
    return NetworkRow("", "dense", dense.cost, 1.0, dense.val_accuracy, test, _megabytes(dense.cost), latency=latency)


def network_row(result: SearchResult, network: TrialResult) -> NetworkRow:
    """Return the row of a measured network.

    Raises:
        ValueError: the network has no cost.
    """
    cost, trial = network.cost, network.trial
    if cost is None:
        raise ValueError(f"trial {network.label} is {network.state} and has no cost to report")
    before = {row["group"]: row["width"] for row in result.space.get("groups", [])}
    widths = {group: (before.get(group), width) for group, width in (network.widths or {}).items()}
    return NetworkRow(
        label=network.label,
        method=trial.method,
        baseline=trial.baseline,
        cost=cost,
        flops_share=cost.flops / result.dense.cost.flops,
        accuracy=network.accuracy,
        test=reached_on_test(network),
        megabytes=_megabytes(cost, network),
        latency=tuple(latency_cells(result, network.label)),
        widths=widths,
        training=training_text(trial.training),
        chosen=result.is_chosen(network),
    )


def front_rows(result: SearchResult) -> list[NetworkRow]:
    """Return the dense network and the front, most accurate first."""
    return [dense_row(result), *(network_row(result, member) for member in reversed(result.front.members))]


def quantised(rows: list[NetworkRow]) -> bool:
    """Return whether a network stores its weights in other than four bytes each."""
    return any(row.megabytes != _megabytes(row.cost) for row in rows)


def widths_table(result: SearchResult, network: TrialResult) -> TextTable:
    """Tabulate the widths of a network before and after, group by group."""
    layers = {row["group"]: str(len(row.get("layers", ()))) for row in result.space.get("groups", [])}
    widths = network_row(result, network).widths
    rows: list[tuple[str, ...]] = []
    for group, (known, after) in list(widths.items())[:ROWS_SHOWN]:
        before = after if known is None else known
        bar = "#" * max(1, round(20 * after / before))
        rows.append((group, layers.get(group, ""), str(before), str(after), percent(after / before, 0), bar))
    if len(widths) > ROWS_SHOWN:
        rows.append((f"... and {len(widths) - ROWS_SHOWN} more", *[""] * 5))
    columns = ("group", ">layers", ">before", ">after", ">kept", "")
    return TextTable(f"Widths of trial {network.label}", columns, rows)


def latency_table(result: SearchResult) -> TextTable | None:
    """Tabulate the measured latencies of dense and front beside their FLOPs; None where nothing was measured."""
    dense = readings(result, REFERENCE)
    if not dense:
        return None
    networks = [(REFERENCE, dense_row(result)), *((n.label, network_row(result, n)) for n in reversed(result.reported))]
    rows = [
        (network, row.of_dense, str(reading.conditions.batch), *reading_cells(reading))
        for network, row in networks
        for reading in readings(result, network)
    ]
    conditions = dense[0].conditions
    form = ", channels_last" if conditions.channels_last else ""
    title = f"Latency on {conditions.device} ({conditions.device_name}), {conditions.engine}, {conditions.dtype}{form}"
    columns = ("network", ">FLOPs of dense", ">batch", ">ms", ">95% interval", ">time of dense")
    return TextTable(title, columns, rows)


def rank_correlation_table(result: SearchResult) -> TextTable | None:
    """Tabulate the rank correlation of rungs, and of the accuracy before training, with the end of training.

    None where there is nothing to show. A dash stands for one over fewer than `LEAST` trials, or where nothing varies.
    """
    screening = [] if result.screening_audit is None else [result.screening_audit]
    audits = [audit for audit in (*screening, *result.rung_audits) if audit.trials]
    if not audits:
        return None

    def cell(correlation: float | None, trials: int) -> str:
        return f"{'-' if correlation is None or trials < LEAST else f'{correlation:.2f}'} ({trials})"

    bands = [f">{short(band.flops[0])} to {short(band.flops[1])}" for band in audits[0].bands]
    rows = []
    for audit in audits:
        cells = [cell(band.correlation, band.trials) for band in audit.bands]
        epochs = str(audit.epochs) if audit.epochs else "0 (before training)"
        rows.append((epochs, *cells, cell(audit.correlation, audit.trials)))
    title = "Proxy audit: rank correlation of a rung with the end of training, by cost (trials)"
    return TextTable(title, (">epochs", *bands, ">within all"), rows)


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
            "val_accuracy": network.accuracy,
            "test_accuracy": network.test_accuracy,
            **confirmed_figures(network),
            "seconds": f"{network.seconds:.3f}",
            "path": network.path,
            "settings": json.dumps(dict(network.trial.settings), sort_keys=True),
            "widths": network.widths.to_json() if network.widths else "",
            "chosen": result.is_chosen(network),
            "best_at": best_at_text(result, network),
            "training": json.dumps(dict(network.trial.training), sort_keys=True),
            **latency_columns(result, network.label),
        }
        for network in result.reported
        if network.cost is not None
    ]


def front_columns(result: SearchResult) -> dict[str, list[Any]]:
    """Return the reported networks as columns, for MLflow; none where there is no network."""
    rows = reported_values(result)
    names = [*MLFLOW_COLUMNS, *latency_columns(result, REFERENCE)] if rows else []
    return {name: [row[name] for row in rows] for name in names}


def write_csv(result: SearchResult, path: Path) -> None:
    """Write the front, cheapest first: counts as whole numbers, accuracies as shares, widths as JSON.

    Networks that are the best at a target without being on the front come after it.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        names = [*CSV_COLUMNS, *latency_columns(result, REFERENCE)]
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(reported_values(result))


def _megabytes(cost: Cost, network: TrialResult | None = None) -> str:
    size = 4 * cost.params / 1e6
    return f"{size if network is None else float(network.note.get('size_mb', size)):.4g}"
