import pytest

from spaces.errors import UnknownNameError
from spaces.registry import Registry

TABLE = Registry("shape", {"square": "math:sqrt", "circle": "math:pi"})


def test_objects_are_imported_by_name() -> None:
    assert TABLE["square"](9) == 3


def test_listing_and_asking_import_nothing() -> None:
    broken = Registry("thing", {"here": "no.such.module:x"})
    assert "here" in broken
    assert list(broken) == ["here"]
    assert len(broken) == 1


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown shape 'sqare'; did you mean square?"):
        TABLE["sqare"]


def test_names_far_from_all_get_the_whole_list() -> None:
    with pytest.raises(UnknownNameError, match="known: circle, square"):
        TABLE["zzz"]
