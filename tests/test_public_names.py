"""The names that a user imports from the root of a package: complete, resolvable and light.

A package imports them under `TYPE_CHECKING` for type checkers and editors, lists them in `__all__`, and finds their
homes lazily; the three must agree.
"""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ["search", "configs", "runners", "pruning", "spaces"]


def typed_homes(package):
    """Return public name -> module, as type checkers read it."""
    tree = ast.parse(Path(importlib.import_module(package).__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    nodes = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: node.module for node in nodes for alias in node.names}


HOMES = [(package, name, home) for package in PACKAGES for name, home in typed_homes(package).items()]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_public_list_is_that_of_type_checkers(package):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(typed_homes(package))
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize(("package", "name", "home"), HOMES)
def test_every_public_name_is_that_of_its_home(package, name, home):
    assert getattr(importlib.import_module(package), name) is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'no_such_name'"):
        importlib.import_module(package).no_such_name  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_is_light(package):
    code = f"import sys, {package}; print(*({{'torch', 'ray', 'mlflow', 'optuna', 'numpy'}} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == ""
