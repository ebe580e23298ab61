"""Fields of settings classes: what their annotations say, and how values are read and checked."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval, Predicate

from spaces.errors import ConfigError
from spaces.fields import BelowOne, Flag, check_settings, parse_float, parse_int, setting_fields


@dataclass(frozen=True)
class Engine:
    pistons: Annotated[int, Interval(ge=1), "at least 1"] = 4
    fuel: Annotated[Literal["petrol", "diesel"], Flag("engine-fuel")] = "petrol"
    loss: BelowOne = 0.5
    gears: Annotated[tuple[int, ...], Predicate(lambda gears: max(gears) < 9), "below 9"] = (1,)
    names: tuple[str, ...] = ()
    turbo: bool = False

    def __post_init__(self) -> None:
        check_settings(self)


def test_a_field_has_the_key_type_and_rule_of_its_annotation() -> None:
    fuel, gears = setting_fields(Engine)["fuel"], setting_fields(Engine)["gears"]
    assert (fuel.key, fuel.flag, fuel.type, fuel.rule) == ("engine_fuel", "--engine-fuel", str, "one of petrol, diesel")
    assert (gears.key, gears.item, gears.repeated, gears.default) == ("gears", int, True, (1,))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pistons": 0}, "--pistons is 0 and must be at least 1"),
        ({"fuel": "water"}, "--engine-fuel is 'water' and must be one of petrol, diesel"),
        ({"loss": 1.0}, "--loss is 1.0 and must be in [0, 1)"),
        ({"loss": float("nan")}, "--loss is nan and must be in [0, 1)"),
        ({"gears": (1, 9)}, "--gears is (1, 9) and must be below 9"),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Engine(**values)
    assert str(caught.value) == message


def test_values_at_the_ends_of_their_ranges_are_allowed() -> None:
    assert Engine(pistons=1, loss=0.0, gears=(8,)) != Engine()


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("pistons", " 8 ", 8),
        ("loss", "1e-3", 0.001),
        ("turbo", "Yes", True),
        ("gears", "1, 2,", (1, 2)),
        ("gears", ["1", "2,3"], (1, 2, 3)),
        ("names", "a,b", ("a,b",)),
        ("names", ["a", "5"], ("a", "5")),
        ("loss", "-.5E+1", -5.0),
    ],
)
def test_flags_and_yaml_are_read_in_the_type_of_the_field(name: str, value: Any, read: Any) -> None:
    assert setting_fields(Engine)[name].read(value, name) == read


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("pistons", True, "True and must be a whole number"),
        ("pistons", "1.0", "'1.0' and must be a whole number"),
        ("loss", "half", "'half' and must be a number"),
        ("turbo", "1", "'1' and must be true or false"),
        ("fuel", [5], "a list and must be a text without control characters"),
        ("fuel", "a\0b", "'a\\x00b' and must be a text without control characters"),
        ("fuel", "\udcff", "'\\udcff' and must be a text without control characters"),
        ("names", [["a"]], "a list and must be a text without control characters"),
        ("gears", "1,x", "'x' and must be a whole number"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        setting_fields(Engine)[name].read(value, "--it")
    assert str(caught.value) == f"--it is {words}"


@pytest.mark.parametrize("text", ["1_0", "1:30", "0x10", "\u0663", "1e3", "", "--1", "1,000", "9" * 5000])
def test_what_nobody_writes_on_paper_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the label of the error is the caller's
        parse_int(text)


@pytest.mark.parametrize("text", ["1_0.5", "1:30", "nan", "inf", "1e400", "0x1p3", "1.2.3", "\u0663", ".", "e5", ""])
def test_what_nobody_writes_on_paper_is_no_number(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_float(text)


def test_a_long_value_is_shortened_in_its_error() -> None:
    with pytest.raises(ConfigError) as caught:
        setting_fields(Engine)["loss"].read("x" * 10**6, "--it")
    assert len(str(caught.value)) < 200
