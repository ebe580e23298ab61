"""Tune's settings are set during a search and restored after it."""

import logging
import os

import pytest

from runners.ray.settings import quiet_tune


def test_variables_and_log_levels_are_restored_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "1")
    monkeypatch.delenv("TUNE_DISABLE_SIGINT_HANDLER", raising=False)
    before, level = dict(os.environ), logging.getLogger("ray.tune").level

    def search() -> None:
        with quiet_tune():
            assert os.environ["RAY_AIR_NEW_OUTPUT"] == "0"
            assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
            assert logging.getLogger("ray.tune").level == logging.CRITICAL
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        search()
    assert dict(os.environ) == before
    assert logging.getLogger("ray.tune").level == level
