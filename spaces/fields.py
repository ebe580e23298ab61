"""The fields of settings classes: flag, type and rule stand in the annotation, as in

    batch_size: Annotated[int, Interval(ge=1), "at least 1"] = 32

The text says the rule in words, for the error message; a `Literal` needs none. A settings class calls `check_settings`
in its `__post_init__`. Texts of flags, YAML files and lists within them become numbers in `parse_int` and `parse_float`
alone, which take what one would write on paper: no 1_0, no 1:30, no infinity.
"""

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from reprlib import Repr
from typing import Annotated, Any, Literal

from annotated_types import Interval, Predicate

from spaces.errors import ConfigError

# Beyond these no setting has a meaning, and arithmetic with it may overflow.
MOST, LEAST_FLOAT, MOST_FLOAT = 1_000_000, 1e-9, 1e9
PositiveInt = Annotated[int, Interval(ge=1, le=MOST), f"at least 1 and at most {MOST}"]
NonNegativeInt = Annotated[int, Interval(ge=0, le=MOST), f"0 or more and at most {MOST}"]
PositiveFloat = Annotated[float, Interval(ge=LEAST_FLOAT, le=MOST_FLOAT), "a positive number from 1e-9 to 1e9"]
NonNegativeFloat = Annotated[float, Interval(ge=0, le=MOST_FLOAT), "0 or more and at most 1e9"]
BelowOne = Annotated[float, Interval(ge=0, lt=1), "in [0, 1)"]

_INT = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # the last: bytes that are no UTF-8


def parse_int(text: str) -> int:
    """Read a whole number in decimal digits; raises ValueError."""
    if _INT.fullmatch(text.strip()) is None:
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def parse_float(text: str) -> float:
    """Read a finite number such as 3, 0.5 or 1e-3; raises ValueError."""
    value = float(text) if _FLOAT.fullmatch(text.strip()) else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no finite number")
    return value


def _parse_text(text: str) -> str:
    if _UNPRINTABLE.search(text):
        raise ValueError("control characters")
    return text


_READERS: Mapping[type, tuple[Callable[[str], Any], str]] = {
    int: (parse_int, "a whole number"),
    float: (parse_float, "a number"),
    bool: (lambda text: _TRUTHS[text.lower()], "true or false"),
    str: (_parse_text, "a text without control characters"),
}
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 120


def shown(value: Any) -> str:
    """Write a value for an error message: a long one shortened, a collection as its kind."""
    return _SHORT.repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


@dataclass(frozen=True)
class Flag:
    """The flag of a setting, where it is not the name of the field.

    Attributes:
        name: without dashes.
        joined: whether the flag of a text may be repeated; the texts are joined by commas.
    """

    name: str
    joined: bool = False


@dataclass(frozen=True)
class SettingField:
    """A field of a settings class, as its annotation describes it.

    Attributes:
        name: of the field.
        key: the name outside of its section: that of its flag, with underscores.
        type: type of the value, without the rule in its annotation; `str` for a `Literal`.
        default: `dataclasses.MISSING` where the field is made by a factory.
        rule: condition on the value, in words; empty without a rule.
        choices: of a `Literal`.
        constraints: that must all hold.
        joined: whether several texts, of a repeated flag or a list in YAML, are joined by commas.
    """

    name: str
    key: str
    type: Any
    default: Any
    rule: str
    choices: tuple[Any, ...]
    constraints: tuple[Interval | Predicate, ...]
    joined: bool = False

    @property
    def flag(self) -> str:
        """The flag with its dashes."""
        return "--" + self.key.replace("_", "-")

    @property
    def repeated(self) -> bool:
        """Whether there may be several values, kept as a tuple."""
        return typing.get_origin(self.type) is tuple

    @property
    def item(self) -> Any:
        """The type of one value."""
        return typing.get_args(self.type)[0] if self.repeated else self.type

    def read(self, value: Any, label: str) -> Any:
        """Return a value from a flag or a file in the type of the field.

        Several numbers may be separated by commas; texts, such as name patterns, may contain commas.

        Args:
            value: a text, or a list of them; a file may also hold lists and mappings where they do not belong.
            label: name of the setting in the error.

        Raises:
            ConfigError: a value of another type.
        """
        if not self.repeated:
            if self.joined and isinstance(value, list):
                value = ",".join(_read_one(part, str, label) for part in value)
            return _read_one(value, self.item, label)
        texts = [_read_one(part, str, label) for part in (value if isinstance(value, list) else [value])]
        if self.item is str:
            return tuple(texts)
        parts = [part.strip() for text in texts for part in text.split(",")]
        return tuple(_read_one(part, self.item, label) for part in parts if part)

    def allows(self, value: Any) -> bool:
        """Whether a value keeps the rule; one that cannot be compared does not."""
        try:
            return (not self.choices or value in self.choices) and all(_holds(rule, value) for rule in self.constraints)
        except TypeError:
            return False


@cache
def setting_fields(section: type) -> Mapping[str, SettingField]:
    """Return the fields of a settings dataclass by their names."""
    hints = typing.get_type_hints(section, include_extras=True)
    return {field.name: _described(field, hints[field.name]) for field in dataclasses.fields(section)}


def check_settings(settings: Any) -> None:
    """Check every field of a settings dataclass against its annotation.

    Raises:
        ConfigError: the first value that breaks its rule; the message names the flag, the value and the rule.
    """
    section: Any = type(settings)
    for field in setting_fields(section).values():
        value = getattr(settings, field.name)
        if not field.allows(value):
            raise ConfigError(f"{field.flag} is {_SHORT.repr(value)} and must be {field.rule}")


def _described(field: dataclasses.Field[Any], annotation: Any) -> SettingField:
    plain, *extras = typing.get_args(annotation) if typing.get_origin(annotation) is Annotated else (annotation,)
    choices = typing.get_args(plain) if typing.get_origin(plain) is Literal else ()
    flag = next((extra for extra in extras if isinstance(extra, Flag)), Flag(field.name))
    key = flag.name.replace("-", "_")
    one_of = f"one of {', '.join(choices)}" if choices else ""
    rule = next((extra for extra in extras if isinstance(extra, str)), one_of)
    constraints = tuple(extra for extra in extras if isinstance(extra, Interval | Predicate))
    return SettingField(
        field.name, key, str if choices else plain, field.default, rule, choices, constraints, flag.joined
    )


def _read_one(value: Any, kind: Any, label: str) -> Any:
    read, words = _READERS[kind]
    try:
        if isinstance(value, str):
            return read(value)
    except (ValueError, KeyError):
        pass
    raise ConfigError(f"{label} is {shown(value)} and must be {words}")


def _holds(rule: Interval | Predicate, value: Any) -> bool:
    if isinstance(rule, Predicate):
        return bool(rule.func(value))
    above = (rule.gt is None or value > rule.gt) and (rule.ge is None or value >= rule.ge)
    below = (rule.lt is None or value < rule.lt) and (rule.le is None or value <= rule.le)
    return bool(above and below)
