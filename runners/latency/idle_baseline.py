"""The idle baseline: the seconds that the dense net takes on the idle machine, shared by the processes that measure.

A process sees its machine for minutes, in which other programs or a warm processor may make it steadily slower. Each
process therefore records the least time that it found for the dense net, and the least of the last records is taken as
the time on the idle machine.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from runners.cache import CacheError, write_cached

PROCESSES = 32  # records that are kept, so that a speed which the machine no longer reaches is forgotten in time

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IdleBaseline:
    """How long the reference takes on the idle machine.

    Attributes:
        seconds: of one call of the reference.
        remedy: text for messages that says what to do when the machine will never be as fast again.
    """

    seconds: float
    remedy: str = ""


def shared_idle_seconds(record: Path, found: float | None) -> float | None:
    """Return the least seconds that the last processes recorded, this one included; None when there is no record.

    Args:
        record: JSON file with the seconds of the last processes, read and written under a lock that the caller
            holds. A file that cannot be read or written is ignored with a warning.
        found: seconds that this process found and adds to the record; None adds nothing.
    """
    seconds = _read(record)
    if found is not None:
        seconds = [*seconds, found][-PROCESSES:]
        try:
            write_cached(record, json.dumps(seconds).encode())
        except CacheError as error:
            _log.warning("other processes will not know how fast this machine is: %s", error)
    return min(seconds, default=None)


def _read(record: Path) -> list[float]:
    try:
        return [float(seconds) for seconds in json.loads(record.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        _log.warning("how fast this machine was, in %s, cannot be read (%s); it is found anew", record, error)
        return []
