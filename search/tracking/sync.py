"""What MLflow lacks of a search, sent later: after an outage of its server, after a kill, or to another server."""

import os
from dataclasses import dataclass
from pathlib import Path

from configs.loading import RUN_FILE, read_config
from configs.passwords import masked, with_password
from search.tracking.journal import Journal, Record
from search.tracking.mlflow_tracker import RECORDS_AT_ONCE, TrackingError, first_line
from search.tracking.models import UnexportableError
from search.tracking.runs import SearchRuns
from search.tracking.store import SQLITE, STORE_FILE
from spaces.errors import SlimfrontError


@dataclass(frozen=True)
class Sent:
    """What `send_missing` did.

    Attributes:
        sent: number of records that the store had lacked.
        total: number of records of the search.
        uri: of the store, without its password.
        command: that opens MLflow on the run, or its address on a server.
        ended: whether the search had ended.
        refused: why networks are no models.
    """

    sent: int
    total: int
    uri: str
    command: str
    ended: bool
    refused: tuple[str, ...]


def send_missing(folder: Path, tracking_uri: str = "", *, trust: bool = False) -> Sent:
    """Send the records of a run folder that a store lacks; a search that was killed ends there as KILLED.

    Args:
        tracking_uri: of the store; empty takes that of the search.
        trust: whether code that the networks of the folder name may be imported and called.

    Raises:
        ResultError: the folder has no journal, or it was changed.
        TrackingError: the store does not answer, or does not take a record.
        ConfigError: the address has no password, and the environment has none.
    """
    journal = Journal(folder)
    named = tracking_uri or str(read_config(str(folder / RUN_FILE)).get("tracking_uri", ""))
    address = with_password("tracking_uri", named or os.environ.get("MLFLOW_TRACKING_URI", ""))
    uri = address or f"{SQLITE}{folder.resolve() / STORE_FILE}"
    try:
        runs = SearchRuns.open(uri, folder.resolve(), journal.heading, not address, trust=trust)
    except SlimfrontError:
        raise
    except Exception as error:  # whatever its library raises
        raise TrackingError(
            f"MLflow does not answer at {masked(uri)!r} ({first_line(error)}); start it, or give another --tracking-uri"
        ) from error
    taken, total, last, refused = min(runs.taken, len(journal)), len(journal), Record(), list[str]()
    for number, last in enumerate(journal.read()):
        if number < taken:
            continue
        try:
            runs.send(last)
            if number % RECORDS_AT_ONCE == 0:
                runs.confirm(number + 1)
        except UnexportableError as error:
            refused.append(f"network of {last.run} is no model: {error}")
        except SlimfrontError:
            raise
        except Exception as error:  # whatever its library raises
            raise TrackingError(
                f"MLflow at {masked(uri)!r} has taken {number} of {total} records and not the next "
                f"({first_line(error)}); the others still wait, the same command goes on"
            ) from error
    runs.confirm(total)
    ended = not last.run and bool(last.status)
    if not ended:
        runs.stop()
    return Sent(total - taken, total, masked(uri), runs.command(masked(uri)), ended, tuple(refused))
