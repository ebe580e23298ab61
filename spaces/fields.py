"""The fields of settings classes: flag, type and rule stand in the annotation, as in

    batch_size: Annotated[int, Interval(ge=1), "at least 1"] = 32

The text says the rule in words, for the error message; a `Literal` needs none. A settings class calls `check_settings`
in its `__post_init__`.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Annotated, Any, Literal

from annotated_types import Interval, Predicate

from spaces.errors import ConfigError

PositiveInt = Annotated[int, Interval(ge=1), "at least 1"]
NonNegativeInt = Annotated[int, Interval(ge=0), "0 or more"]
PositiveFloat = Annotated[float, Interval(gt=0, lt=inf), "a positive number"]
NonNegativeFloat = Annotated[float, Interval(ge=0, lt=inf), "0 or more"]
BelowOne = Annotated[float, Interval(ge=0, lt=1), "in [0, 1)"]

_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_READERS: Mapping[type, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (lambda text: _TRUTHS[text.lower()], "true or false"),
}


@dataclass(frozen=True)
class Flag:
    """The flag of a setting without its dashes, where that is not the name of the field."""

    name: str


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
    """

    name: str
    key: str
    type: Any
    default: Any
    rule: str
    choices: tuple[Any, ...]
    constraints: tuple[Interval | Predicate, ...]

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
        """Return a value from a flag (a text) or from YAML (anything) in the type of the field.

        Several numbers may be separated by commas; texts, such as name patterns, may contain commas.

        Args:
            label: name of the setting in the error.

        Raises:
            ConfigError: a value of another type.
        """
        if not self.repeated:
            return _read_one(value, self.item, label)
        values = value if isinstance(value, list) else [value]
        if self.item is str:
            return tuple(str(part) for part in values)
        texts = [text.strip() for part in values for text in str(part).split(",")]
        return tuple(_read_one(text, self.item, label) for text in texts if text)

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
            raise ConfigError(f"{field.flag} is {value!r} and must be {field.rule}")


def _described(field: dataclasses.Field[Any], annotation: Any) -> SettingField:
    plain, *extras = typing.get_args(annotation) if typing.get_origin(annotation) is Annotated else (annotation,)
    choices = typing.get_args(plain) if typing.get_origin(plain) is Literal else ()
    key = next((extra.name for extra in extras if isinstance(extra, Flag)), field.name).replace("-", "_")
    one_of = f"one of {', '.join(choices)}" if choices else ""
    rule = next((extra for extra in extras if isinstance(extra, str)), one_of)
    constraints = tuple(extra for extra in extras if isinstance(extra, Interval | Predicate))
    return SettingField(field.name, key, str if choices else plain, field.default, rule, choices, constraints)


def _read_one(value: Any, kind: Any, label: str) -> Any:
    # YAML reads `final_epochs: 4` as a number.
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    read, words = _READERS.get(kind, (None, "a text"))
    try:
        if read:
            return read(str(value))
    except (ValueError, KeyError):
        pass
    raise ConfigError(f"{label} is {str(value)!r} and must be {words}")


def _holds(rule: Interval | Predicate, value: Any) -> bool:
    if isinstance(rule, Predicate):
        return bool(rule.func(value))
    above = (rule.gt is None or value > rule.gt) and (rule.ge is None or value >= rule.ge)
    below = (rule.lt is None or value < rule.lt) and (rule.le is None or value <= rule.le)
    return bool(above and below)
