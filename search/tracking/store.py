"""MLflow stores: open one, and create one in a file."""

import logging
import logging.config
import os
import shlex
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from spaces.files import no_room

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SQLITE = "sqlite:///"  # before the path of a store in a file
LOCAL_SERVER = "http://127.0.0.1:5000"  # where `mlflow ui` answers by default
ANSWER_SECONDS = 10.0
STORE_FILE, ARTIFACTS = "mlflow.db", "mlartifacts"  # of a run folder
PARENT_TAG = "mlflow.parentRunId"

# Columns of the store that hold places of artifacts.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_log = logging.getLogger(__name__)

# MLflow reads these variables when it is imported or used; the user's own values stay. It must not call home, nor wait
# for minutes for a server that is down, nor print on standard output.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# Migrations of MLflow 3.1 whose loggers set their own level, so that only a filter keeps their INFO lines back.
_VERBOSE_MIGRATIONS = (
    "89d4b8295536_create_latest_metrics_table_py",
    "2b4d017a5e9b_add_model_registry_tables_to_db_py",
)


def open_store(uri: str) -> "MlflowClient":
    """Return the client of a store; a SQLite file that is not there is created."""
    client = _client_class()
    if (file := missing_file(uri)) is not None:
        create_store(file)
    return client(tracking_uri=uri)


def check_store(uri: str) -> None:
    """Ask a server whether it answers; MLflow itself, which takes seconds to load, is not. Other stores are not asked.

    Raises:
        OSError: it does not answer, or says that it cannot.
    """
    if not uri.startswith(("http://", "https://")):
        return
    place = urlsplit(uri)
    bare = place._replace(netloc=place.netloc.rpartition("@")[2])  # urllib takes no user
    try:
        urlopen(f"{bare.geturl().rstrip('/')}/health", timeout=ANSWER_SECONDS).close()
    except HTTPError as error:  # one that asks who we are answers
        if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise


def is_unavailable(error: BaseException) -> bool:
    """Return whether a write failed because a store or a disk cannot take it now: it may later."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return str(error.error_code) == "TEMPORARILY_UNAVAILABLE"
    return isinstance(error, OSError) and no_room(error)


def page_address(server: str, experiment: str, run: str = "") -> str:
    """Return the address of an experiment or of one of its runs on a server, among the menus of model training."""
    place = f"experiments/{experiment}" + (f"/runs/{run}" if run else "")
    return f"{server.rstrip('/')}/#/{place}?workflowType=machine_learning"


def ui_command(uri: str, experiment: str = "") -> str:
    """Return the command line that opens MLflow on a store, and below it the page of an experiment."""
    command = f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    return command + (f"\n  then open {page_address(LOCAL_SERVER, experiment)}" if experiment else "")


def folder_command(folder: Path) -> str:
    """Return `ui_command` for the store in a run folder; empty where there is none."""
    file = folder.resolve() / STORE_FILE
    if not file.is_file():
        return ""
    try:
        with closing(sqlite3.connect(file)) as store:
            found = store.execute("SELECT experiment_id FROM runs ORDER BY start_time").fetchone()
    except sqlite3.Error:  # the command will say what is wrong with it
        found = None
    return ui_command(f"{SQLITE}{file}", str(found[0]) if found else "")


def rebase_artifacts(folder: Path) -> None:
    """Tell the store of a run folder that was moved where its artifacts are now: MLflow keeps absolute places."""
    file, place = folder.resolve() / STORE_FILE, (folder.resolve() / ARTIFACTS).as_uri()
    if not file.is_file():
        return
    try:
        with closing(sqlite3.connect(file)) as store, store:
            found = store.execute(
                "SELECT artifact_location FROM experiments WHERE artifact_location LIKE ?", [f"%/{ARTIFACTS}"]
            )
            for old in {location for (location,) in found if location != place}:
                for table, column in _PLACES:
                    change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
                    store.execute(change, [place, len(old) + 1, len(old), old])
    except sqlite3.Error as error:
        _log.warning("MLflow's artifacts in %s are where the folder was before (%s)", folder, error)


def missing_file(uri: str) -> Path | None:
    """Return the SQLite file that has to be created before the store is opened; None for a server or an existing file.

    A file whose folder is missing is left to MLflow, which reports it.
    """
    file = Path(uri.removeprefix(SQLITE))
    return file if uri.startswith(SQLITE) and file.parent.is_dir() and not file.exists() else None


def create_store(file: Path) -> None:
    """Create an empty store in a SQLite file, whole or not at all.

    It is made under another name first: MLflow can never open a store whose creation was killed in the middle.
    """
    client = _client_class()
    for leftover in file.parent.glob(f".{file.name}.*"):
        leftover.unlink()
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    with _unconfigured_logging():
        client(tracking_uri=f"{SQLITE}{temporary}").search_experiments(max_results=1)
    temporary.replace(file)


def _client_class() -> type["MlflowClient"]:
    """Import MLflow so that it prints nothing between the lines of a progress bar."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for name in _VERBOSE_MIGRATIONS:
        logging.getLogger(name).addFilter(_is_warning)
    return MlflowClient


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


@contextmanager
def _unconfigured_logging() -> Iterator[None]:
    """Keep the migrations of MLflow 3.1 from configuring logging.

    They read alembic.ini, which replaces the handlers of the root logger and prints INFO lines on standard error.
    """
    configure = logging.config.fileConfig
    logging.config.fileConfig = lambda *_, **__: None  # type: ignore[assignment]
    try:
        yield
    finally:
        logging.config.fileConfig = configure
