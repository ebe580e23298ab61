"""The names that a user imports from the root of a package: complete, resolvable and light."""

import importlib
import subprocess
import sys

import pytest

PACKAGES = ["search", "configs", "runners", "pruning", "spaces"]
NAMES = [(package, name) for package in PACKAGES for name in getattr(importlib.import_module(package), "__all__", [])]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_public_list_is_sorted_and_listed(package):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == module.__all__
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_every_public_name_resolves(package, name):
    assert getattr(importlib.import_module(package), name).__name__ == name


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'no_such_name'"):
        importlib.import_module(package).no_such_name  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_is_light(package):
    code = f"import sys, {package}; print(*({{'torch', 'ray', 'mlflow', 'optuna', 'numpy'}} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == ""
