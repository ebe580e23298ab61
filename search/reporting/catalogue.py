"""What there is to choose from: `python -m search methods [NAME]` and `python -m search presets [NAME]`."""

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from configs.loading import PRESETS
from pruning.base import METHODS
from pruning.settings import Setting, declared_settings
from spaces.registry import unknown_name

PLAIN_WIDTH = 120  # of what is not a terminal
KINDS = {bool: "true/false", int: "whole number", float: "number", str: "name"}


def describe_methods(names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return method -> everything it declares about itself, as plain data; all methods where none is named.

    Raises:
        UnknownNameError: no such method; the message lists the nearest.
    """
    return {name: _described(METHODS[name]) for name in names or sorted(METHODS)}


def methods_page(names: Sequence[str] = ()) -> RenderableType:
    """Return methods and their settings as tables; the methods named are told in full."""
    methods = describe_methods(names)
    parts: list[RenderableType] = [] if names else [_overview(methods), ""]
    for name, method in methods.items():
        paper = f"  ({method['paper']})" if method["paper"] else ""
        parts.append(Text.assemble((name, "bold"), paper))
        if names:
            parts += ["", Text(method["text"]), "", f"Needs: {method['needs']}.", f"Widths: {method['widths']}.", ""]
        parts += [_settings(method["settings"]) if method["settings"] else "nothing to set", ""]
    parts.append("Fix a setting with --set METHOD.SETTING=VALUE; of the others, the search varies those marked so.")
    return Group(*parts)


def describe_presets(names: Sequence[str] = ()) -> dict[str, str]:
    """Return preset -> the first line of its file; all presets where none is named.

    Raises:
        UnknownNameError: no such preset; the message lists the nearest.
    """
    files = {file.stem: file for file in sorted(PRESETS.glob("*.yaml"))}
    for name in names:
        if name not in files:
            raise unknown_name("preset", name, list(files))
    return {name: _preset(name).partition("\n")[0].lstrip("# ") for name in names or files}


def presets_page(names: Sequence[str] = ()) -> RenderableType:
    """Return the presets and what each is, or the files of those named.

    Raises:
        UnknownNameError: no such preset; the message lists the nearest.
    """
    known = describe_presets(names)
    if names:
        return Group(*[Text(_preset(name)) for name in known])
    table = _table("preset", "what")
    for name, text in known.items():
        table.add_row(name, escape(text))
    return Group(table, "Run one with --config NAME --data-dir FOLDER, flags on top; `presets NAME` prints its file.")


def show(page: RenderableType, stream: TextIO) -> None:
    """Print a page, as wide as the terminal."""
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PLAIN_WIDTH
    Console(file=stream, width=width, highlight=False, emoji=False).print(page)


def _preset(name: str) -> str:
    return (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def _described(method: Any) -> dict[str, Any]:
    able = {"given": method.takes_widths, "found within budgets": method.finds_widths}
    return {
        "paper": method.paper,
        "text": inspect.cleandoc(method.__doc__ or ""),
        "needs": method.needs,
        "widths": " or ".join(way for way, holds in able.items() if holds),
        "settings": [_plain(each) for each in declared_settings(method)],
    }


def _plain(each: Setting) -> dict[str, Any]:
    return {
        "name": each.name,
        "type": KINDS[type(each.default)],
        "default": each.default,
        "low": each.low,
        "high": each.high,
        "log": each.log,
        "choices": list(each.choices),
        "searched": each.searchable,
        "help": each.help,
    }


def _overview(methods: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("method", "what it does", "widths", "needs", "paper")
    for name, method in methods.items():
        first = " ".join(method["text"].partition("\n\n")[0].split())
        table.add_row(name, *[escape(each) for each in (first, method["widths"], method["needs"], method["paper"])])
    return table


def _settings(settings: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("setting", "type", "default", "range", "searched", "what it is")
    for each in settings:
        searched = "yes" if each["searched"] else "no"
        table.add_row(
            each["name"], each["type"], value_text(each["default"]), range_text(each), searched, escape(each["help"])
        )
    return table


def range_text(each: Mapping[str, Any]) -> str:
    """Write what a setting may be, e.g. "0.1 to 1, log"; `each` is one of `describe_methods`."""
    if each["choices"]:
        return ", ".join(value_text(choice) for choice in each["choices"])
    ends = [value_text(each[end]) for end in ("low", "high") if each[end] is not None]
    return " to ".join(ends) + (", log" if ends and each["log"] else "")


def value_text(value: Any) -> str:
    """Write a value of a setting as `--set` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, no_wrap=place == 0, overflow="fold")
    return table
