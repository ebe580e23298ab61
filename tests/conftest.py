"""What every test can rely on: one torch thread, and a cache folder of its own instead of the user's."""

import os
import tempfile
from collections.abc import Iterator

import pytest

# Two threads in each of two processes on two cores are many times slower than one in each.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIMFRONT_CACHE", folder)
        yield
