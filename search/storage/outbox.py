"""Outbox: what the study of a search has not taken yet, because its storage did not answer.

The search goes on meanwhile. The records wait in a file of the run folder, so that they outlive the process too.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from spaces.files import write_atomically

UNSENT = ".study.unsent"  # file of a run folder
OUTAGE = (StorageInternalError, SQLAlchemyError, OSError)  # what Optuna lets through when a server does not answer
PATIENCE = 5.0  # seconds in which a record is tried again before the search goes on without it
BETWEEN_TRIES = 10.0  # seconds, once the storage is known not to answer
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """A trial that has ended, or an attribute of the study."""

    trial: FrozenTrial | None = None
    name: str = ""
    value: Any = None


class Outbox:
    """Writes records to a study in their order, each once; those that it does not take wait.

    Args:
        where: names the storage in messages.
        file: keeps waiting records; None keeps them in memory alone.
        add: writes a trial to the study; None leaves it to the study.
    """

    def __init__(
        self, study: optuna.Study, where: str, file: Path | None, add: Callable[[FrozenTrial], None] | None = None
    ) -> None:
        self._study, self._where, self._file = study, where, file
        self._add = add or study.add_trial
        self._waiting: list[Record] = []
        self._next_try = 0.0
        self._doubtful = False  # the storage may have taken the first waiting record and not said so

    @property
    def waiting(self) -> int:
        """Number of records that the study has not taken."""
        return len(self._waiting)

    def restore(self) -> None:
        """Write what an earlier process could not write."""
        if self._file is not None and self._file.is_file():
            self._waiting = [_record(data) for data in json.loads(self._file.read_bytes())]
            self._doubtful = True
            self.flush(PATIENCE)

    def put(self, record: Record) -> None:
        """Write a record, or keep it until the storage answers again."""
        in_outage = bool(self._waiting)
        self._waiting.append(record)
        if in_outage and time.monotonic() < self._next_try:
            self._keep()
        else:
            self.flush(0.0 if in_outage else PATIENCE)

    def flush(self, seconds: float) -> bool:
        """Write what waits, again and again for so many seconds; return whether nothing waits any more."""
        in_outage = self._doubtful
        retrying = Retrying(
            retry=retry_if_exception_type(OUTAGE),
            stop=stop_after_delay(seconds),
            wait=wait_exponential(multiplier=0.2, max=10.0),
            reraise=True,
        )
        try:
            retrying(self._send)
        except OUTAGE as error:
            self._next_try = time.monotonic() + BETWEEN_TRIES
            if not in_outage:
                reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
                _log.warning("%s does not answer (%s); the search goes on, its records wait", self._where, reason)
            self._keep()
            return False
        if in_outage:
            _log.warning("%s answers again; the records that waited are written", self._where)
        self._keep()
        return True

    def _send(self) -> None:
        while self._waiting:
            record = self._waiting[0]
            if not (self._doubtful and self._has(record)):
                self._doubtful = True
                self._write(record)
            self._doubtful = False
            del self._waiting[0]

    def _write(self, record: Record) -> None:
        if record.trial is not None:
            self._add(record.trial)
        else:
            self._study.set_user_attr(record.name, record.value)

    def _has(self, record: Record) -> bool:
        """Return whether the study has a trial already: it was taken when the answer was lost."""
        trial = record.trial
        if trial is None:
            return False
        return any(
            (stored.datetime_complete, stored.params) == (trial.datetime_complete, trial.params)
            for stored in self._study.get_trials(deepcopy=False)
        )

    def _keep(self) -> None:
        """Make the file hold what waits."""
        if self._file is None:
            return
        if self._waiting:
            write_atomically(self._file, json.dumps([_plain(record) for record in self._waiting]).encode())
        else:
            self._file.unlink(missing_ok=True)


def _plain(record: Record) -> dict[str, Any]:
    """Return a record as plain data: a run folder may come from someone else, so nothing in it is unpickled."""
    trial = record.trial
    if trial is None:
        return {"name": record.name, "value": record.value}
    return {
        "state": trial.state.name,
        "values": trial.values,
        "params": trial.params,
        "distributions": {name: distribution_to_json(given) for name, given in trial.distributions.items()},
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "start": None if trial.datetime_start is None else trial.datetime_start.isoformat(),
        "complete": None if trial.datetime_complete is None else trial.datetime_complete.isoformat(),
    }


def _record(data: dict[str, Any]) -> Record:
    if "name" in data:
        return Record(name=data["name"], value=data["value"])
    trial = optuna.trial.create_trial(
        state=TrialState[data["state"]],
        values=data["values"],
        params=data["params"],
        distributions={name: json_to_distribution(text) for name, text in data["distributions"].items()},
        user_attrs=data["user_attrs"],
        system_attrs=data["system_attrs"],
    )
    trial.datetime_start = None if data["start"] is None else datetime.fromisoformat(data["start"])
    trial.datetime_complete = None if data["complete"] is None else datetime.fromisoformat(data["complete"])
    return Record(trial)
