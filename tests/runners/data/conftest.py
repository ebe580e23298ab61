"""The digits, loaded once."""

import pytest

from runners.config import DataConfig
from runners.data.loading import ImageData, load_data


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data(DataConfig("digits"), seed=0)
