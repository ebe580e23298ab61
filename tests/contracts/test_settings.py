"""What every setting of every method must keep to, so that it can be searched, fixed and explained."""

import dataclasses

import pytest

from pruning.base import METHODS
from pruning.settings import Setting, declared_settings, parse_setting

DECLARED = [(name, each) for name in sorted(METHODS) for each in declared_settings(METHODS[name])]
IDS = [f"{name}.{each.name}" for name, each in DECLARED]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_public_field_is_declared(name: str) -> None:
    """An arm may keep for itself what makes it that arm; what is declared has the field's own default."""
    method = METHODS[name]()
    for each in declared_settings(METHODS[name]):
        assert getattr(method, each.name) == each.default
    assert {each.name for each in declared_settings(method)} <= {each.name for each in dataclasses.fields(method)}


@pytest.mark.parametrize(("name", "each"), DECLARED, ids=IDS)
def test_a_setting_explains_itself(name: str, each: Setting) -> None:
    assert each.help
    assert not each.help.endswith(".")


@pytest.mark.parametrize(("name", "each"), DECLARED, ids=IDS)
def test_the_default_is_within_the_bounds_and_parses_to_itself(name: str, each: Setting) -> None:
    for value in (each.default, str(each.default)):
        parsed = parse_setting(name, each, value)
        assert parsed == each.default
        assert type(parsed) is type(each.default)


@pytest.mark.parametrize(("name", "each"), DECLARED, ids=IDS)
def test_bounds_go_together(name: str, each: Setting) -> None:
    if each.choices:
        assert each.low is None
        assert each.high is None
        assert len(set(each.choices)) == len(each.choices)
        assert all(type(choice) is type(each.default) for choice in each.choices)
    if each.low is not None and each.high is not None:
        assert each.low < each.high
    if each.log:
        assert each.low is not None
        assert each.low > 0
    if isinstance(each.default, bool):
        assert each.low is None
        assert each.high is None


@pytest.mark.parametrize(("name", "each"), DECLARED, ids=IDS)
def test_what_may_be_searched_makes_a_method(name: str, each: Setting) -> None:
    """Every end of the range is a setting that the method itself accepts."""
    if each.searchable:
        for value in each.choices or (each.low, each.high):
            METHODS[name](**{each.name: type(each.default)(value)})
