"""The idle baseline: the seconds that the dense net takes on the idle machine, shared by the processes that measure.

A process sees its machine for minutes, in which other programs or a warm processor may make it steadily slower. Each
process therefore records the least time that it found for the dense net, and the lower quartile of the last records is
taken as the time on the idle machine: of four processes or more, one that was lucky does not decide. The baseline only
scales latencies, all by the same factor; it refuses none.
"""

import json
import logging
from pathlib import Path

from runners.cache import write_cached

PROCESSES = 32  # records that are kept, so that a speed which the machine no longer reaches is forgotten in time

_log = logging.getLogger(__name__)


def shared_idle_seconds(record: Path, found: float | None) -> float | None:
    """Return the lower quartile of what the last processes recorded, this one included; None when there is no record.

    Args:
        record: JSON file with the seconds of the last processes, read and written under a lock that the caller
            holds. A file that cannot be read or written is ignored with a warning.
        found: seconds that this process found and adds to the record; None adds nothing.
    """
    seconds = _read(record)
    if found is not None:
        seconds = [*seconds, found][-PROCESSES:]
        write_cached(record, json.dumps(seconds).encode())
    return sorted(seconds)[len(seconds) // 4] if seconds else None


def _read(record: Path) -> list[float]:
    try:
        return [float(seconds) for seconds in json.loads(record.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        _log.warning("how fast this machine was, in %s, cannot be read (%s); it is found anew", record, error)
        return []
