"""The methods and presets to choose from: `python -m search methods [NAME]` and `python -m search presets [NAME]`."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from configs.loading import PRESETS
from pruning.base import METHODS
from pruning.settings import Setting, declared_settings
from search.reporting.wording import TextTable, one_line
from spaces.registry import unknown_name

KINDS = {bool: "true/false", int: "whole number", float: "number", str: "name"}


def describe_methods(names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return method -> everything it declares about itself, as plain data; all methods where none is named.

    Raises:
        UnknownNameError: no such method; the message lists the nearest.
    """
    return {name: _method(METHODS[name]) for name in names or sorted(METHODS)}


def describe_setting(setting: Setting) -> dict[str, Any]:
    """Return what a setting declares about itself, as plain data."""
    return {
        "name": setting.name,
        "type": KINDS[type(setting.default)],
        "default": setting.default,
        "low": setting.low,
        "high": setting.high,
        "log": setting.log,
        "choices": list(setting.choices),
        "searched": setting.searchable,
        "help": setting.help,
    }


def methods_page(names: Sequence[str] = ()) -> RenderableType:
    """Return methods and their settings as tables; the named methods are described in full."""
    methods = describe_methods(names)
    parts: list[RenderableType] = [] if names else [_overview(methods), ""]
    for name, method in methods.items():
        parts.append(Text.assemble((name, "bold"), f"  ({method['paper']})" if method["paper"] else ""))
        if names:
            parts += ["", Text(method["text"]), "", f"Needs: {method['needs']}.", f"Widths: {method['widths']}.", ""]
        parts += [_settings(method["settings"]) if method["settings"] else "nothing to set", ""]
    parts.append("Fix a setting with --set METHOD.SETTING=VALUE; --search-settings METHOD searches those with a yes.")
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
    """Return the presets with the first line of each, or the files of the named ones."""
    known = describe_presets(names)
    if names:
        return Group(*[Text(_preset(name)) for name in known])
    table = TextTable("", ("=preset", "what"), list(known.items()), spaced=True)
    return Group(table, "Run one with --config NAME --data-dir FOLDER, flags on top; `presets NAME` prints its file.")


def _preset(name: str) -> str:
    return (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def _method(method: Any) -> dict[str, Any]:
    able = {"given": method.takes_widths, "found within budgets": method.finds_widths}
    return {
        "paper": method.paper,
        "text": inspect.cleandoc(method.__doc__ or ""),
        "needs": method.needs,
        "widths": " or ".join(widths for widths, holds in able.items() if holds),
        "settings": [describe_setting(setting) for setting in declared_settings(method)],
    }


def _overview(methods: Mapping[str, Mapping[str, Any]]) -> TextTable:
    rows = [
        (name, one_line(method["text"].partition("\n\n")[0]), method["widths"], method["needs"], method["paper"])
        for name, method in methods.items()
    ]
    return TextTable("", ("=method", "what it does", "widths", "needs", "paper"), rows, spaced=True)


def _settings(settings: Sequence[Mapping[str, Any]]) -> TextTable:
    rows = []
    for setting in settings:
        texts = (value_text(setting["default"]), range_text(setting), "yes" if setting["searched"] else "no")
        rows.append((setting["name"], setting["type"], *texts, setting["help"]))
    columns = ("=setting", "type", "default", "range", "searchable", "what it is")
    return TextTable("", columns, rows, spaced=True)


def range_text(setting: Mapping[str, Any]) -> str:
    """Write the values that a setting of `describe_methods` may take, e.g. "0.1 to 1, log"."""
    if setting["choices"]:
        return ", ".join(map(value_text, setting["choices"]))
    ends = [value_text(setting[end]) for end in ("low", "high") if setting[end] is not None]
    return " to ".join(ends) + (", log" if ends and setting["log"] else "")


def value_text(value: Any) -> str:
    """Write a value of a setting as `--set` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
