"""How figures and tables are written for a person."""

from typing import Literal

from rich import box
from rich.table import Table

ROWS_SHOWN = 24  # of a table that grows with the network; a DenseNet has over a hundred groups
_UNITS = ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k"))


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


def plural(number: int, noun: str) -> str:
    """Write how many of something there are: "1 trial", "2 trials"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def titled_table(title: str, *columns: str) -> Table:
    """Make an empty table; a column name that starts with ">" is aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.collapse_padding = True
    for name in columns:
        is_number = name.startswith(">")
        justify: Literal["right", "left"] = "right" if is_number else "left"
        table.add_column(name.lstrip(">"), justify=justify, overflow="fold", no_wrap=is_number)
    return table
