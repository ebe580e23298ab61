import subprocess
import sys

import pytest

import search


def test_the_public_list_is_complete():
    assert sorted(search._HOMES) == search.__all__
    assert set(search.__all__) <= set(dir(search))


@pytest.mark.parametrize("name", search.__all__)
def test_every_public_name_resolves(name):
    assert getattr(search, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        search.no_such_name  # noqa: B018


def test_importing_search_is_light():
    code = "import sys, search; print(*({'torch', 'ray', 'mlflow', 'optuna', 'numpy'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == ""
