"""A trial is written to the tables of a database as Optuna writes it."""

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from search.storage.study_storage import DIRECTIONS
from search.storage.trial_tables import NAMES, TrialTables, tables_are_known


def trial(**changes: Any) -> FrozenTrial:
    made = optuna.create_trial(
        **{
            "values": [0.5, 3.0e9],
            "params": {"relative_width.a": 0.3, "allocation": "method", "steps": 8},
            "distributions": {
                "relative_width.a": FloatDistribution(0.1, 1.0, log=True),
                "allocation": CategoricalDistribution(["search", "method"]),
                "steps": IntDistribution(2, 16, step=2),
            },
            "user_attrs": {"result": {"cost": [1, None]}, "reason": "naïve"},
            "system_attrs": {"fixed_params": {"steps": 8}},
            **changes,
        }
    )
    made.datetime_start, made.datetime_complete = datetime(2026, 7, 30, 12, 0, 0, 5), datetime(2026, 7, 30, 12, 1)
    return made


def study(file: Path) -> tuple[optuna.storages.RDBStorage, optuna.Study]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    optuna.create_study(study_name="another", storage=storage, directions=DIRECTIONS).add_trial(trial())
    return storage, optuna.create_study(study_name="ours", storage=storage, directions=DIRECTIONS)


def rows(file: Path) -> dict[str, list[tuple[Any, ...]]]:
    with closing(sqlite3.connect(file)) as database:
        return {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in NAMES}


TRIALS = (
    trial(),
    trial(values=[float("inf"), float("-inf")]),
    optuna.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs={"reason": "loss is nan"}),
)


@pytest.fixture
def _far_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local times are not those of UTC."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_far_away")
def test_all_rows_are_those_that_optuna_writes(tmp_path: Path) -> None:
    _, theirs = study(tmp_path / "theirs.db")
    storage, _ = study(tmp_path / "ours.db")
    assert tables_are_known(storage), "Optuna has other tables: compare, then change REVISION and VERSIONS"
    tables = TrialTables(storage, "ours")
    for added in TRIALS:
        theirs.add_trial(added)
        tables.add(added)
    expected = rows(tmp_path / "theirs.db")
    assert [len(expected[name]) for name in NAMES] == [2, 4, 6, 9, 7, 3]
    assert rows(tmp_path / "ours.db") == expected


def test_a_trial_with_what_the_tables_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    storage, ours = study(tmp_path / "study.db")
    tables = TrialTables(storage, "ours")
    bad = trial()
    bad.values = [0.5, float("nan")]
    with pytest.raises(ValueError, match="no number"):
        tables.add(bad)
    with pytest.raises(TypeError, match="not JSON serializable"):
        tables.add(trial(user_attrs={"weights": b"bytes"}))
    assert ours.trials == []


def test_processes_that_write_at_once_get_different_numbers(tmp_path: Path) -> None:
    storage, ours = study(tmp_path / "study.db")
    tables = [TrialTables(storage, "ours"), TrialTables(optuna.storages.RDBStorage(storage.url), "ours")]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: [one.add(trial()) for _ in range(20)], tables))
    assert [stored.number for stored in ours.trials] == list(range(40))
