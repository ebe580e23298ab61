"""What `import runners` gives a user of the library, and that it loads nothing heavy for it."""

import subprocess
import sys

import pytest

import runners


@pytest.mark.parametrize("name", runners.__all__)
def test_a_public_name_is_imported_from_its_module(name: str) -> None:
    found = getattr(runners, name)
    module = getattr(found, "__module__", "runners")
    assert module.split(".")[0] in ("runners", "spaces", "collections", "typing")


def test_all_is_what_can_be_had() -> None:
    assert set(runners.__all__) == set(runners._HOMES)


def test_importing_the_package_loads_neither_torch_nor_ray() -> None:
    code = "import runners, sys; sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
