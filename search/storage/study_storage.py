"""StudyStorage: a search as an Optuna study in a storage, which outlives the process.

A trial enters the storage once, whole, when it has ended: stored parameter by parameter, a candidate with 20 groups
takes 25 commits, up to a second on a busy disk, and a killed process would leave trials that run for ever.
"""

import gc
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy import create_engine, func, select
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from configs.passwords import masked
from runners.trial import Trial, TrialResult
from search.problem import Problem
from search.results.serialization import trial_result_from_dict, trial_result_to_dict
from search.storage.outbox import UNSENT, Outbox, Record
from search.storage.trial_tables import TrialTables, tables_are_known
from spaces.errors import LostError, SlimfrontError

DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)  # validation accuracy, cost
ACCURACY, COSTS = "accuracy", {"flops": "flops", "latency": "latency_seconds"}  # names of both for Optuna
STUDY_FILE = "study.db"  # of a run folder
RESULT = "result"  # user attribute of a trial: its TrialResult as plain data
CONNECTING = {"connect_timeout": 5}  # seconds
LAST_PATIENCE = 60.0  # seconds in which the last records are tried at the end of a search
TABLES_LOCK = 7_461_000  # of PostgreSQL, under which tables are made
_WORDS = {"widths": "another network or space", "methods": "other methods", "budgets": "other budgets"}


def trial_attributes(result: TrialResult) -> dict[str, Any]:
    """Return the user attributes of a stored trial: what users of Optuna read, and the whole result."""
    readable: dict[str, Any] = {"network": result.label, "method": result.trial.method}
    if result.trial.baseline:
        readable["baseline"] = result.trial.baseline
    if result.cost is not None:
        readable |= asdict(result.cost)
    if result.widths is not None:
        readable["widths"] = dict(result.widths)
    return {**readable, RESULT: trial_result_to_dict(result)}


class StudyError(SlimfrontError):
    """A study that cannot be opened, or that is told of a trial that it did not ask for."""


class StorageLostError(LostError):
    """A storage that went away during a search and did not come back until its end."""


@dataclass(frozen=True)
class StoredTrial:
    """A stored trial, or one of its training segments.

    Attributes:
        result: None where it ended without one, or lost its workers: then it may be tried again.
        earlier: it was tried under other budgets.
    """

    frozen: FrozenTrial
    result: TrialResult | None
    earlier: bool


class StudyStorage:
    """The stored study of one search.

    Args:
        url: of an Optuna storage.
        name: of the study in it.
        problem: the search, whose widths and methods a stored one must share, and its budgets and targets unless
            `resumed`: these are then noted to hold from now on.
        unsent: file for records while the storage does not answer; None keeps them in memory.

    Raises:
        StudyError: a storage that cannot be used or holds another search.
    """

    def __init__(
        self, url: str, name: str, problem: Problem, *, resumed: bool = False, unsent: Path | None = None
    ) -> None:
        self.url, self._problem = masked(url), problem
        self._where = f"storage {self.url!r}"
        identity = _identity(problem)
        try:
            self._backend = _storage(url)
            self._study = _open(self._backend, name)
            stored = self._study.user_attrs.get("identity")
            if stored is None:
                self._study.set_user_attr("identity", identity)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    self._study.set_metric_names([ACCURACY, COSTS[problem.axis]])
            add = TrialTables(self._backend, name).add if tables_are_known(self._backend) else None
        except ImportError as error:  # of another database than PostgreSQL
            raise StudyError(f"{self._where} needs a package that is not installed ({error})") from error
        except (OptunaError, SQLAlchemyError, ValueError, OSError) as error:
            reason = masked(str(error).splitlines()[0])
            raise StudyError(
                f"{self._where} cannot hold the study ({reason}); give a writable place or another URL"
            ) from error
        self._outbox = Outbox(self._study, self._where, unsent, add)
        self._outbox.restore()
        self._check_identity(stored or identity, identity, resumed)

    @classmethod
    def of_run(cls, problem: Problem, folder: Path) -> "StudyStorage":
        """Open the storage of a run: SQLite in its folder, unless the config names another."""
        config = problem.config
        url = config.storage_address or f"sqlite:///{folder.resolve() / STUDY_FILE}"
        name = "slimfront" if not config.storage else Path(config.out or folder).name
        return cls(url, name, problem, resumed=bool(config.resume), unsent=folder / UNSENT)

    @property
    def _ended(self) -> list[FrozenTrial]:
        """Every trial that has ended, failed ones and those of a stopped process too."""
        with _no_collection():
            return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def read(self) -> list[StoredTrial]:
        """Return the stored trials in the order of recording, with the latencies that were measured later.

        Raises:
            StudyError: a trial names code of which this search knows nothing; the storage may be someone else's.
        """
        attributes = self._study.user_attrs

        def with_latency(network: TrialResult) -> TrialResult:
            return replace(network, latency=tuple(attributes.get(f"latency {network.label}", ())))

        trials = []
        for index, frozen in enumerate(self._ended):
            data = frozen.user_attrs.get(RESULT)
            result = None if data is None else trial_result_from_dict(data).map_networks(with_latency)
            if result is not None:
                self._check_code(result.trial)
            result = None if result is not None and result.lost else result
            trials.append(StoredTrial(frozen, result, earlier=index < attributes.get("earlier", 0)))
        return trials

    def add(self, trial: FrozenTrial) -> None:
        """Write a trial that has ended, or another training segment of one, whole or not at all.

        While the storage does not answer, it waits.
        """
        self._outbox.put(Record(trial))

    def add_latency(self, label: str, readings: Sequence[Mapping[str, Any]]) -> None:
        """Write what was measured of a network after its trial had ended."""
        self._outbox.put(Record(name=f"latency {label}", value=[dict(reading) for reading in readings]))

    def finish(self, resume: str) -> None:
        """Write the records that wait.

        Args:
            resume: the command that goes on with the search.

        Raises:
            StorageLostError: the storage does not answer.
        """
        if not self._outbox.flush(LAST_PATIENCE):
            raise StorageLostError(
                f"{self._where} did not come back: the front is written, and {self._outbox.waiting} records wait in "
                f"the run folder; {resume} writes them once it answers"
            )

    def close(self) -> None:
        """Close the connections to a server."""
        self._backend.remove_session()
        self._backend.engine.dispose()

    def fingerprint(self, name: str) -> str | None:
        """Return the digest that is stored under this name."""
        found: str | None = self._study.user_attrs.get(f"fingerprint of {name}")
        return found

    def check_fingerprint(self, name: str, digest: str) -> None:
        """Store the digest of something that every result rests on.

        Raises:
            StudyError: there are results that rest on something else.
        """
        stored = self.fingerprint(name)
        if stored not in (None, digest) and any(RESULT in trial.user_attrs for trial in self._ended):
            raise StudyError(
                f"{self._where} holds a search with other {name} (digest {str(stored)[:12]} there, "
                f"{digest[:12]} here); bring those back, or start a new search"
            )
        if stored != digest:
            self._study.set_user_attr(f"fingerprint of {name}", digest)

    def _check_code(self, trial: Trial) -> None:
        """Raise a StudyError for a trial whose method, or a setting of it, is code that this search does not name."""
        fixed = self._problem.fixed.get(trial.method, {})
        named = [value for name, value in trial.settings.items() if ":" in str(value) and value != fixed.get(name)]
        if ":" in trial.method and trial.method not in self._problem.methods:
            named.append(trial.method)
        if named:
            raise StudyError(
                f"{self._where} holds trial {trial.number} with {', '.join(map(str, named))}, which this search does "
                "not have; start a new search, or give its methods"
            )

    def _check_identity(self, stored: Mapping[str, Any], identity: Mapping[str, Any], resumed: bool) -> None:
        differing = [name for name in identity if stored.get(name) != identity[name]]
        if differing == ["budgets"] and resumed:
            self._study.set_user_attr("earlier", len(self._ended))
            self._study.set_user_attr("identity", dict(identity))
        elif differing:
            named = ", ".join(
                _WORDS[name] + ("" if name == "widths" else f" ({stored.get(name)} there, {identity[name]} here)")
                for name in differing
            )
            raise StudyError(f"{self._where} holds a search of {named}; give a fresh one, or those")


def _identity(problem: Problem) -> dict[str, Any]:
    limits: dict[str, object] = {budget.quantity: budget.limit for budget in problem.budgets}
    if problem.targets:
        limits["targets"] = [target.limit for target in problem.targets]
    return {"widths": dict(problem.space.full), "methods": list(problem.methods), "budgets": limits}


def _open(storage: RDBStorage, name: str) -> optuna.Study:
    """Return the study of this name, made where there is none.

    Looked for before it is made: a process that was killed while it made the tables may have left the table of studies
    without the index which keeps names unique, and by which `create_study` would know that it has it.
    """
    if name in optuna.get_all_study_names(storage):
        return optuna.load_study(study_name=name, storage=storage)
    return optuna.create_study(study_name=name, storage=storage, directions=DIRECTIONS, load_if_exists=True)


def check_storage(url: str) -> None:
    """Ask a server whether it answers; nothing is written to it. A storage in a file is not looked at.

    Raises:
        StudyError: the driver is not installed.
        SQLAlchemyError: it does not answer.
    """
    if not _is_postgres(url):
        return
    with _engine(url) as engine:
        engine.connect().close()


def _storage(url: str) -> RDBStorage:
    """Return the storage of a URL; of PostgreSQL one that notices a connection which an outage has closed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its lines would tear the progress bar
    if not _is_postgres(url):
        return RDBStorage(url)
    settings = {"pool_pre_ping": True, "connect_args": CONNECTING}
    with _engine(url) as engine, engine.begin() as locked:
        # Two searches that begin at once on an empty database would make its tables at once, and one of them fail.
        locked.execute(select(func.pg_advisory_xact_lock(TABLES_LOCK)))
        return RDBStorage(_with_driver(url), engine_kwargs=settings)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for garbage: half a million rows, none of them garbage, would be gone through often."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _engine(url: str) -> Iterator[Engine]:
    """Yield an engine of PostgreSQL, and close its connections.

    Raises:
        StudyError: the driver is not installed.
    """
    try:
        engine = create_engine(_with_driver(url), connect_args=CONNECTING)
    except ImportError as error:
        raise StudyError(
            f"storage {masked(url)!r} needs a package that is not installed ({error}); for PostgreSQL: "
            "pip install 'slimfront[postgres]'"
        ) from error
    try:
        yield engine
    finally:
        engine.dispose()


def _is_postgres(url: str) -> bool:
    return url.startswith(("postgresql:", "postgresql+psycopg:"))


def _with_driver(url: str) -> str:
    """Return the URL with psycopg as its driver, whichever one SQLAlchemy would take: 2.0 takes another than 2.1."""
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
