"""Values that a user gives to a method's settings, as `--set METHOD.SETTING=VALUE` does."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pruning.base import METHODS
from pruning.settings import Setting
from spaces.errors import SlimfrontError
from spaces.registry import unknown_name


class SettingError(SlimfrontError):
    """A method setting that does not exist, or a value it cannot take."""


def parse_settings(
    method: str, values: Mapping[str, Any], known: Mapping[str, Sequence[Setting]]
) -> dict[str, float | int | str | bool]:
    """Parse setting -> value (or its text) of one method.

    Args:
        known: method -> its settings, of the methods that the search runs.

    Raises:
        UnknownNameError: no such method, or setting of it.
        SettingError: a method that the search does not run, or a value that the setting cannot take.
    """
    if method not in known:
        METHODS[method]  # raises for a name that is in no table
        raise SettingError(
            f"settings of {method!r} are given, but the search runs {', '.join(known)}; add it to --method"
        )
    by_name = {each.name: each for each in known[method]}
    for name in values:
        if name not in by_name:
            raise unknown_name(f"setting of {method}", name, sorted(by_name))
    return {name: parse_setting(method, by_name[name], value) for name, value in values.items()}


def parse_setting(method: str, each: Setting, value: Any) -> float | int | str | bool:
    """Bring a value (or its text) to the type of the setting's default, and check its bounds.

    Raises:
        SettingError: not of that type, out of bounds or none of the choices.
    """
    kind = type(each.default)
    words = {"true": True, "false": False}
    try:
        parsed = words[str(value).strip().lower()] if kind is bool else kind(value)
    except (KeyError, ValueError, TypeError):
        raise SettingError(f"{method}.{each.name}={value} is no {kind.__name__}; {_rule(each)}") from None
    inside = parsed in each.choices if each.choices else True
    if isinstance(parsed, (int, float)) and kind is not bool:
        low = -math.inf if each.low is None else each.low
        high = math.inf if each.high is None else each.high
        inside = low <= parsed <= high
    if not inside:
        raise SettingError(f"{method}.{each.name}={value} is out of bounds; {_rule(each)}")
    return parsed


def _rule(each: Setting) -> str:
    if each.choices:
        return f"give one of {', '.join(str(choice) for choice in each.choices)}"
    if each.low is not None or each.high is not None:
        return f"give a number from {each.low} to {each.high}, the default is {each.default}"
    return f"give something like its default, {each.default}"
