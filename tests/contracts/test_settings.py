"""The contract of all settings of all methods, so that they can be searched, fixed and explained."""

import dataclasses

import pytest

from pruning.base import METHODS
from pruning.settings import Setting, declared_settings, parse_setting

DECLARED = [(name, declared) for name in sorted(METHODS) for declared in declared_settings(METHODS[name])]
IDS = [f"{name}.{declared.name}" for name, declared in DECLARED]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_public_field_is_declared(name: str) -> None:
    """A declared setting has the default of its field; fields that are no settings may exist besides."""
    method = METHODS[name]()
    for declared in declared_settings(METHODS[name]):
        assert getattr(method, declared.name) == declared.default
    names = {declared.name for declared in declared_settings(method)}
    assert names <= {field.name for field in dataclasses.fields(method)}


@pytest.mark.parametrize(("name", "declared"), DECLARED, ids=IDS)
def test_a_setting_explains_itself(name: str, declared: Setting) -> None:
    assert declared.help
    assert not declared.help.endswith(".")


@pytest.mark.parametrize(("name", "declared"), DECLARED, ids=IDS)
def test_the_default_is_within_the_bounds_and_parses_to_itself(name: str, declared: Setting) -> None:
    for value in (declared.default, str(declared.default)):
        parsed = parse_setting(name, declared, value)
        assert parsed == declared.default
        assert type(parsed) is type(declared.default)


@pytest.mark.parametrize(("name", "declared"), DECLARED, ids=IDS)
def test_bounds_go_together(name: str, declared: Setting) -> None:
    if declared.choices:
        assert declared.low is None
        assert declared.high is None
        assert len(set(declared.choices)) == len(declared.choices)
        assert all(type(choice) is type(declared.default) for choice in declared.choices)
    if declared.low is not None and declared.high is not None:
        assert declared.low < declared.high
    if declared.log:
        assert declared.low is not None
        assert declared.low > 0
    if isinstance(declared.default, bool):
        assert declared.low is None
        assert declared.high is None


@pytest.mark.parametrize(("name", "declared"), DECLARED, ids=IDS)
def test_what_may_be_searched_makes_a_method(name: str, declared: Setting) -> None:
    """The method accepts both ends of the range of every searchable setting, and all choices."""
    if declared.searchable:
        for value in declared.choices or (declared.low, declared.high):
            METHODS[name](**{declared.name: type(declared.default)(value)})
