"""How a method declares its settings, and how a user's values for them are read."""

import dataclasses
import math

import pytest

from pruning.settings import Setting, SettingError, declared_settings, parse_setting, parse_settings, setting
from spaces.errors import UnknownNameError


@dataclasses.dataclass(frozen=True)
class Tuned:
    ridge: float = setting(0.1, low=1e-3, high=10.0, log=True)
    images: int = setting(64)
    order: str = setting("greedy", choices=("greedy", "closed"))
    exact: bool = setting(False, choices=(True, False), searched=False)
    undeclared: int = 3


RIDGE, IMAGES, ORDER, EXACT = declared_settings(Tuned)
KNOWN = {"tuned": declared_settings(Tuned)}


def test_declared_fields_become_settings_in_order() -> None:
    assert Setting("ridge", 0.1, 1e-3, 10.0, log=True) == RIDGE
    assert [declared.name for declared in declared_settings(Tuned())] == ["ridge", "images", "order", "exact"]


def test_a_search_varies_settings_with_bounds_or_choices_unless_told_not_to() -> None:
    assert [declared.searchable for declared in (RIDGE, IMAGES, ORDER, EXACT)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("declared", "value", "expected"),
    [(RIDGE, "0.5", 0.5), (RIDGE, 10, 10.0), (IMAGES, "7", 7), (ORDER, "closed", "closed"), (EXACT, " True", True)],
)
def test_a_value_takes_the_type_of_the_default(declared: Setting, value, expected) -> None:
    parsed = parse_setting("tuned", declared, value)
    assert (parsed, type(parsed)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("declared", "value", "message"),
    [
        (RIDGE, "much", r"tuned.ridge=much is no float; give a number from 0.001 to 10.0, the default is 0.1"),
        (RIDGE, 11, "tuned.ridge=11 is out of bounds"),
        (RIDGE, math.nan, "tuned.ridge=nan is no float"),
        (IMAGES, "6_4", "tuned.images=6_4 is no int"),
        (IMAGES, "2.5", "tuned.images=2.5 is no int; give something like its default, 64"),
        (ORDER, "gredy", "tuned.order=gredy is out of bounds; give one of greedy, closed"),
        (EXACT, "maybe", "tuned.exact=maybe is no bool; give one of True, False"),
    ],
)
def test_a_value_that_the_setting_cannot_take_is_refused_with_the_rule(declared: Setting, value, message) -> None:
    with pytest.raises(SettingError, match=message):
        parse_setting("tuned", declared, value)


def test_settings_of_one_method_are_parsed_together() -> None:
    assert parse_settings("tuned", {"ridge": "1", "exact": "false"}, KNOWN) == {"ridge": 1.0, "exact": False}


def test_a_method_that_the_search_does_not_run_is_refused() -> None:
    with pytest.raises(SettingError, match="settings of 'l2' are given, but the search runs tuned; add it to --method"):
        parse_settings("l2", {}, KNOWN)


def test_unknown_methods_and_settings_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown method 'l3'; did you mean"):
        parse_settings("l3", {}, KNOWN)
    with pytest.raises(UnknownNameError, match="unknown setting of tuned 'rigde'; did you mean ridge"):
        parse_settings("tuned", {"rigde": 1}, KNOWN)
