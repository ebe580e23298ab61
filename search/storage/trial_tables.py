"""TrialTables: the tables in which Optuna keeps trials in a database, written to in five statements a trial.

Optuna's own way takes three statements for every parameter and attribute, 140 for a trial with 37 widths: 25 ms of CPU
in SQLite, and as many journeys to a server. What it writes is not a public interface, so that the tables are written
to only where they are known, and tests compare them with what Optuna writes itself.
"""

import json
import math
from datetime import UTC, datetime

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy import MetaData, func, select

REVISION = "v3.2.0.a"  # of the tables that are known
VERSIONS = "5."  # of Optuna that write them as `TrialTables` does: earlier ones keep local times instead of UTC
DATABASES = ("sqlite", "postgresql")
NAMES = ("studies", "trials", "trial_values", "trial_params", "trial_user_attributes", "trial_system_attributes")


def tables_are_known(storage: RDBStorage) -> bool:
    """Return whether `TrialTables` knows the tables of a storage."""
    known = storage.engine.name in DATABASES and optuna.__version__.startswith(VERSIONS)
    return known and storage.get_current_version() == REVISION


class TrialTables:
    """Adds trials to a study, as `optuna.Study.add_trial` does.

    Args:
        storage: whose tables are known.
        study: its name.
    """

    def __init__(self, storage: RDBStorage, study: str) -> None:
        self._engine, self._study = storage.engine, storage.get_study_id_from_name(study)
        metadata = MetaData()
        metadata.reflect(bind=storage.engine, only=NAMES)
        self._tables = metadata.tables

    def add(self, trial: FrozenTrial) -> None:
        """Write a trial that has ended, whole or not at all.

        Raises:
            ValueError: it has values that Optuna would refuse, or intermediate ones.
            SQLAlchemyError: the storage does not take it.
        """
        if trial.intermediate_values or any(map(math.isnan, trial.values or ())):
            raise ValueError(f"trial {trial.number} has intermediate values, or a value that is no number")
        studies, trials = self._tables["studies"], self._tables["trials"]
        number = select(func.count()).select_from(trials).where(trials.c.study_id == self._study).scalar_subquery()
        row = {
            "study_id": self._study,
            "number": number,
            "state": trial.state.name,
            "datetime_start": _utc(trial.datetime_start),
            "datetime_complete": _utc(trial.datetime_complete),
        }
        with self._engine.begin() as connection:
            # The number rests on the others of the study: a server lets one process at a time count them.
            connection.execute(select(studies.c.study_id).where(studies.c.study_id == self._study).with_for_update())
            inserted = connection.execute(trials.insert().values(row)).inserted_primary_key
            assert inserted is not None  # of a single row
            for name, rows in _rows(trial).items():
                if rows:
                    connection.execute(self._tables[name].insert(), [{"trial_id": inserted[0], **row} for row in rows])


def _rows(trial: FrozenTrial) -> dict[str, list[dict[str, object]]]:
    """Return the rows of a trial by table, without its id."""
    return {
        "trial_values": [
            {"objective": index, "value": value, "value_type": "FINITE"}
            if math.isfinite(value)
            else {"objective": index, "value": None, "value_type": "INF_POS" if value > 0 else "INF_NEG"}
            for index, value in enumerate(trial.values or ())
        ],
        "trial_params": [
            {
                "param_name": name,
                "param_value": trial.distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(trial.distributions[name]),
            }
            for name, value in trial.params.items()
        ],
        "trial_user_attributes": _attribute_rows(trial.user_attrs),
        "trial_system_attributes": _attribute_rows(trial.system_attrs),
    }


def _attribute_rows(attributes: dict[str, object]) -> list[dict[str, object]]:
    return [{"key": name, "value_json": json.dumps(value)} for name, value in attributes.items()]


def _utc(moment: datetime | None) -> datetime | None:
    """Return a local time without its zone as UTC without a zone."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)
