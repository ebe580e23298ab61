"""Settings of a method: how its dataclass declares them, and how a user's values for them are read and checked.

A method declares a setting with `setting(...)`, which gives a dataclass field its default, the bounds within which a
search may vary it, and its line of documentation.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from pruning.base import METHODS
from spaces.errors import SlimfrontError
from spaces.fields import parse_float, parse_int
from spaces.registry import unknown_name

_READERS: Mapping[type, Callable[[str], Any]] = {
    bool: lambda text: {"true": True, "false": False}[text.lower()],
    int: parse_int,
    float: parse_float,
    str: str,
}


class SettingError(SlimfrontError):
    """A method setting that does not exist, or a value it cannot take."""


@dataclass(frozen=True)
class Setting:
    """One hyper-parameter of a method: its default and the bounds within which a search varies it.

    Numbers have `low` and `high` (both inclusive), names have `choices`. A search varies neither a setting without
    bounds and choices nor one with `searched=False`, whose bounds only say which values a user may give.
    """

    name: str
    default: float | int | str | bool
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[str | bool, ...] = ()
    help: str = ""
    searched: bool = True

    @property
    def searchable(self) -> bool:
        """Whether a search may vary the setting."""
        return self.searched and (bool(self.choices) or (self.low is not None and self.high is not None))


def setting(default: Any, **bounds: Any) -> Any:
    """Declare a dataclass field as a setting of a method; `bounds` are fields of `Setting`."""
    return field(default=default, metadata={"setting": bounds})


def declared_settings(method: Any) -> tuple[Setting, ...]:
    """List the settings of a method (its class or an instance), in the order of its fields."""
    return tuple(
        Setting(name=attribute.name, default=cast(Any, attribute.default), **attribute.metadata["setting"])
        for attribute in dataclasses.fields(method)
        if "setting" in attribute.metadata
    )


def parse_settings(
    method: str, values: Mapping[str, Any], known: Mapping[str, Sequence[Setting]]
) -> dict[str, float | int | str | bool]:
    """Parse the values (or their text) that a user gives for settings of one method, as `--set METHOD.SETTING=VALUE`.

    Args:
        values: setting -> value.
        known: method -> its settings, for every method that the search runs.

    Raises:
        UnknownNameError: no method, or no setting of this method, has the name.
        SettingError: the search does not run the method, or the setting cannot take the value.
    """
    if method not in known:
        METHODS[method]  # raises for a name that no method has
        raise SettingError(
            f"settings of {method!r} are given, but the search runs {', '.join(known)}; add it to --method"
        )
    by_name = {declared.name: declared for declared in known[method]}
    for name in values:
        if name not in by_name:
            raise unknown_name(f"setting of {method}", name, sorted(by_name))
    return {name: parse_setting(method, by_name[name], value) for name, value in values.items()}


def parse_setting(method: str, declared: Setting, value: Any) -> float | int | str | bool:
    """Convert a value (or its text) to the type of the setting's default, and check it against the bounds.

    Raises:
        SettingError: the value has another type, is out of bounds, or is none of the choices.
    """
    kind = type(declared.default)
    try:
        parsed: float | int | str | bool = _READERS[kind](str(value).strip())
    except (KeyError, ValueError, TypeError):
        raise SettingError(f"{method}.{declared.name}={value} is no {kind.__name__}; {_rule(declared)}") from None
    inside = parsed in declared.choices if declared.choices else True
    if isinstance(parsed, (int, float)) and kind is not bool:
        low = -math.inf if declared.low is None else declared.low
        high = math.inf if declared.high is None else declared.high
        inside = low <= parsed <= high
    if not inside:
        raise SettingError(f"{method}.{declared.name}={value} is out of bounds; {_rule(declared)}")
    return parsed


def _rule(declared: Setting) -> str:
    if declared.choices:
        return f"give one of {', '.join(str(choice) for choice in declared.choices)}"
    if declared.low is not None or declared.high is not None:
        return f"give a number from {declared.low} to {declared.high}, the default is {declared.default}"
    return f"give something like its default, {declared.default}"
