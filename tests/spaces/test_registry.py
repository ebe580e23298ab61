import pytest

from spaces.errors import UnknownNameError
from spaces.registry import OpenRegistry, Registry

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


OPEN = OpenRegistry("shape", {"square": "math:sqrt"}, needs=("area",), base="shapes.Shape")


def test_an_open_registry_knows_classes_of_the_current_folder(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_shapes.py").write_text("class Triangle:\n    area = 1\n\nclass Line:\n    pass\n\narea = 2.5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert OPEN["own_shapes:Triangle"].area == 1
    assert OPEN["square"](9) == 3
    assert "own_shapes:Triangle" in OPEN
    assert list(OPEN) == ["square"]
    for name, wrong in {
        "own_shapes:Line": "a class without area; it must be a frozen dataclass that derives from shapes.Shape",
        "own_shapes:area": "is a float; it must be",
        "own_shapes:Circle": "cannot be loaded .*own_shapes.*give a known name .square., or package.module:Class",
        "no_such_module:Circle": "cannot be loaded",
    }.items():
        with pytest.raises(UnknownNameError, match=wrong):
            OPEN[name]
