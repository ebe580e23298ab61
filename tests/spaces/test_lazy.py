import importlib
import sys

import pytest

PACKAGE = """
from spaces.lazy import attach

here = 1
__getattr__, __dir__ = attach(__name__, {"Budget": "lazy_package.budget"})
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with one lazy name, `Budget`, whose home is `lazy_package.budget`."""
    folder = tmp_path / "lazy_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "budget.py").write_text("class Budget:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("lazy_package")
    for module in ("lazy_package", "lazy_package.budget"):
        sys.modules.pop(module, None)


def test_a_name_is_taken_from_its_home(package):
    assert package.Budget is importlib.import_module("lazy_package.budget").Budget


def test_a_home_is_imported_at_first_use_only(package):
    dir(package)
    assert "lazy_package.budget" not in sys.modules
    from lazy_package import Budget

    assert Budget is sys.modules["lazy_package.budget"].Budget


def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="module 'lazy_package' has no attribute 'Bugdet'"):
        package.Bugdet  # noqa: B018


def test_dir_lists_lazy_names_beside_those_already_there(package):
    assert {"Budget", "here", "__name__"} <= set(dir(package))
