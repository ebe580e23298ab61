"""What a net takes when the machine is quiet, found together by the processes that measure on it.

A process sees its machine for minutes, in which neighbours or a warm processor may make it steadily slower. So each
leaves the least time that it found for the dense net, and the least of all the last ones is the quiet machine.
"""

import json
import logging
from pathlib import Path

from runners.cache import CacheError, write_cached

PROCESSES = 32  # the last ones count: what a machine could once do is forgotten in time

_log = logging.getLogger(__name__)


def quietest(notes: Path, found: float | None) -> float | None:
    """Return the least of what the last processes found, this one included; None when nobody found anything.

    Args:
        notes: file of these times, under a lock; what cannot be read or written is warned of and left out.
        found: seconds that this process found, which are added; None where it found none.
    """
    seconds = _read(notes)
    if found is not None:
        seconds = [*seconds, found][-PROCESSES:]
        try:
            write_cached(notes, json.dumps(seconds).encode())
        except CacheError as error:
            _log.warning("other processes will not know how fast this machine is: %s", error)
    return min(seconds, default=None)


def _read(notes: Path) -> list[float]:
    try:
        return [float(seconds) for seconds in json.loads(notes.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        _log.warning("how fast this machine was, in %s, cannot be read (%s); it is found anew", notes, error)
        return []
