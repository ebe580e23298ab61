"""All trials of a search as rows of a table that sorts, filters and turns its pages."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from runners.trial import TrialResult
from search.reporting.page.packing import packed
from search.reporting.wording import in_bytes, milliseconds, one_line, percent, scaled
from search.results.result import SearchResult

HEADS = (
    "network",
    "method",
    "baseline",
    "FLOPs",
    "of dense",
    "params",
    "activations",
    "on disk",
    "val",
    "test",
    "val top-5",
    "test top-5",
    "ms",
    "epochs",
    "s",
    "state",
)
PER_PAGE = 200  # rows of the table that a browser has at a time; with 10,000 it would be busy for seconds


@dataclass(frozen=True)
class Cell:
    """A cell: the text that is shown, and the number that it is sorted by; None sorts texts by themselves."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class TrialRow:
    """A network of a trial, or a trial that failed; its cells stand under `HEADS`."""

    cells: Sequence[Cell]
    on_front: bool
    chosen: bool


def trial_rows(result: SearchResult) -> list[TrialRow]:
    """Return a row for every network of every trial, in the order of the trials."""
    front = {member.label for member in result.front}
    return [
        TrialRow(_cells(result, network), network.label in front, result.is_chosen(network))
        for trial in result.results
        for network in trial.networks
    ]


def packed_rows(rows: Sequence[TrialRow]) -> str:
    """Return rows as the page reads them: JSON by columns, which compress better; 10,000 rows would be 8 MB of HTML."""
    columns = zip(*(row.cells for row in rows), strict=True)
    plain = {
        "columns": [
            {
                "texts": [cell.text for cell in column],
                "numbers": [None if cell.number is None else _short(cell.number) for cell in column],
            }
            for column in columns
        ],
        "front": [index for index, row in enumerate(rows) if row.on_front],
        "chosen": [index for index, row in enumerate(rows) if row.chosen],
    }
    return packed(json.dumps(plain, separators=(",", ":"), ensure_ascii=False))


def _short(number: float) -> float:
    """Return a number as it is sorted by: whole numbers are exact, others have more digits than their texts."""
    if isinstance(number, int):
        return number
    short = float(f"{number:.7g}")
    return int(short) if short.is_integer() else short


def _cells(result: SearchResult, network: TrialResult) -> list[Cell]:
    cost, trial = network.cost, network.trial
    seconds = None if network.timed is None else float(network.timed["seconds"])
    in_memory_and_on_disk = (None, None) if cost is None else (cost.activations, cost.size)
    share = None if cost is None else cost.flops / result.dense.cost.flops
    order = trial.number + network.intermediate_index / 1000
    state = str(network.state) + (f": {one_line(network.error)}" if network.error else "")
    return [
        Cell(network.label, order),
        Cell(trial.method),
        Cell(trial.baseline),
        Cell("-" if cost is None else scaled(cost.flops), None if cost is None else cost.flops),
        Cell(percent(share, 1), share),
        Cell("-" if cost is None else scaled(cost.params), None if cost is None else cost.params),
        *(Cell(in_bytes(amount), amount) for amount in in_memory_and_on_disk),
        Cell(percent(network.accuracy), network.accuracy),
        Cell(percent(network.test_accuracy), network.test_accuracy),
        Cell(percent(network.val_top5), network.val_top5),
        Cell(percent(network.test_top5), network.test_top5),
        Cell("-" if seconds is None else milliseconds(seconds), seconds),
        Cell("-" if network.trained is None else str(network.trained), network.trained),
        Cell(f"{network.seconds:.1f}", network.seconds),
        Cell(state),
    ]
