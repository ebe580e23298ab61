"""How numbers and tables are written for a person."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from rich import box
from rich.console import Console, JustifyMethod, RenderableType
from rich.markup import escape
from rich.table import Table

from spaces.cost import Cost

PLAIN_WIDTH = 120  # of a file or pipe, which has no width of its own
ROWS_SHOWN = 24  # of a table that grows with the network; a DenseNet has over a hundred groups
_UNITS = ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k"), (1, ""))


@dataclass(frozen=True)
class TextTable:
    """A table of finished texts, for every renderer; rich renders it as it is.

    Attributes:
        columns: heads; one that starts with ">" stands over numbers, which are aligned to the right and never wrapped;
            one that starts with "=" stands over names, which are never wrapped.
        spaced: whether a terminal shows three spaces between columns instead of two.
        parted: whether a terminal shows a line below the first row.
        styles: index of a row -> its style on a terminal.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    spaced: bool = False
    parted: bool = False
    styles: Mapping[int, str] = field(default_factory=dict)

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads without their marks."""
        return tuple(column.lstrip(">=") for column in self.columns)

    def __rich__(self) -> Table:
        """Render the table for a terminal."""
        table = Table(title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        table.collapse_padding = not self.spaced
        for column, head in zip(self.columns, self.heads, strict=True):
            justify: JustifyMethod = "right" if column.startswith(">") else "left"
            table.add_column(head, justify=justify, overflow="fold", no_wrap=column.startswith((">", "=")))
        for index, row in enumerate(self.rows):
            table.add_row(*map(escape, row), style=self.styles.get(index), end_section=self.parted and index == 0)
        return table


def make_console(stream: TextIO) -> Console:
    """Return a console as wide as the terminal, for texts without emoji and highlighting."""
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, emoji=False)


def print_parts(console: Console, parts: Iterable[RenderableType]) -> None:
    """Print the parts of a report; a `str` is printed as it is, unwrapped, to be copied."""
    for part in parts:
        if isinstance(part, str):
            console.print(part, markup=False, soft_wrap=True)
        else:
            console.print(part)


def scaled(count: float, unit: str = "") -> str:
    """Write a count with its unit and four digits, e.g. 557,892,000 FLOPs as "557.9 MFLOPs"."""
    factor, prefix = _prefix(count)
    digits = 0 if factor == 1 else max(0, 4 - len(str(int(count / factor))))
    return f"{count / factor:.{digits}f} {prefix}{unit}".rstrip()


def short(count: float) -> str:
    """Write a count with at most three digits and no space, e.g. 557,892,000 as "558M"."""
    factor, prefix = _prefix(count)
    return f"{count / factor:.3g}{prefix}"


def _prefix(count: float) -> tuple[int, str]:
    return next((unit for unit in _UNITS if count >= unit[0]), _UNITS[-1])


def counts(cost: Cost) -> str:
    """Write what is known of the cost of a network."""
    parts = [scaled(cost.flops, "FLOPs"), scaled(cost.params, "params")]
    parts += [] if cost.activations is None else [f"{scaled(cost.activations, 'B')} of activations"]
    parts += [] if cost.size is None else [f"{scaled(cost.size, 'B')} on disk"]
    return ", ".join(parts)


def in_bytes(amount: int | None) -> str:
    """Write bytes as `scaled` does, and None as a dash."""
    return "-" if amount is None else scaled(amount, "B")


def percent(share: float | None, digits: int = 2) -> str:
    """Write a share in [0, 1] as a percentage, and None as a dash."""
    return "-" if share is None else f"{100 * share:.{digits}f}%"


def milliseconds(seconds: float) -> str:
    """Write seconds as milliseconds with four digits, without the unit."""
    return f"{1000 * seconds:.4g}"


def duration(seconds: float) -> str:
    """Write seconds as a person would: "42 s", "3 min 05 s", "2 h 10 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def plural(number: int, noun: str) -> str:
    """Write a number of things: "1 trial", "2 trials"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def training_text(training: Mapping[str, float]) -> str:
    """Write searched fine-tuning settings, such as "epochs 2, lr 0.0123"; empty for none."""
    return ", ".join(f"{name} {value:.3g}" for name, value in sorted(training.items()))


def one_line(text: str) -> str:
    """Join the lines of a text, such as an error message."""
    return " ".join(text.split())
