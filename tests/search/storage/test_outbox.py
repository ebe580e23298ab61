"""Records wait while a storage does not answer, and are written once."""

import datetime
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError

from search.storage.outbox import Outbox, Record

FLOAT = optuna.distributions.FloatDistribution(0, 1)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.storage.outbox.PATIENCE", 0.0)
    monkeypatch.setattr("search.storage.outbox.BETWEEN_TRIES", 0.0)


class Study:
    """A study that may be away, or take a trial and lose the answer."""

    def __init__(self) -> None:
        self.real = optuna.create_study()
        self.away = self.loses_the_answer = False

    def add_trial(self, trial: optuna.trial.FrozenTrial) -> None:
        if not self.away:
            self.real.add_trial(trial)
        if self.away or self.loses_the_answer:
            raise StorageInternalError("connection refused")

    def set_user_attr(self, name: str, value: object) -> None:
        if self.away:
            raise StorageInternalError("connection refused")
        self.real.set_user_attr(name, value)

    def get_trials(self, deepcopy: bool) -> list[optuna.trial.FrozenTrial]:
        return self.real.get_trials(deepcopy=deepcopy)


def record(value: float) -> Record:
    trial = optuna.create_trial(
        value=value, params={"x": value}, distributions={"x": FLOAT}, user_attrs={"result": [1]}
    )
    trial.datetime_complete = datetime.datetime(2026, 11, 30, microsecond=int(1000 * value))
    return Record(trial)


def values(study: Study) -> list[float]:
    return [trial.value for trial in study.real.get_trials()]


def test_records_wait_in_their_order_and_go_out_when_the_storage_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study, file = Study(), tmp_path / "unsent"
    outbox = Outbox(study, "storage 'x'", file)
    outbox.put(record(0.1))
    study.away = True
    for value in (0.2, 0.3):
        outbox.put(record(value))
    outbox.put(Record(name="latency 1", value=[1]))
    assert (values(study), outbox.waiting, file.is_file()) == ([0.1], 3, True)
    study.away = False
    outbox.put(record(0.4))
    assert (values(study), outbox.waiting, file.is_file()) == ([0.1, 0.2, 0.3, 0.4], 0, False)
    assert study.real.user_attrs == {"latency 1": [1]}
    assert [line.getMessage().split(" (")[0] for line in caplog.records if line.name.startswith("search")] == [
        "storage 'x' does not answer",
        "storage 'x' answers again; the records that waited are written",
    ]


def test_a_trial_whose_answer_was_lost_is_not_written_twice(tmp_path: Path) -> None:
    study = Study()
    outbox = Outbox(study, "storage 'x'", tmp_path / "unsent")
    study.loses_the_answer = True
    outbox.put(record(0.1))
    study.loses_the_answer = False
    outbox.put(record(0.2))
    assert values(study) == [0.1, 0.2]


def test_what_waited_when_the_process_ended_is_written_by_the_next(tmp_path: Path) -> None:
    study, file = Study(), tmp_path / "unsent"
    study.away = True
    outbox = Outbox(study, "storage 'x'", file)
    outbox.put(record(0.1))
    assert not outbox.flush(0.0)
    study.away = False
    Outbox(study, "storage 'x'", file).restore()
    (stored,) = study.real.get_trials()
    given = record(0.1).trial
    assert given is not None
    for field in ("values", "params", "distributions", "state", "datetime_complete", "user_attrs"):
        assert getattr(stored, field) == getattr(given, field)
    assert not file.exists()
