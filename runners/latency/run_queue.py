"""How long threads have waited for a core: the sign of other work on a machine that slows everything evenly."""

from pathlib import Path


def stalled_seconds() -> float:
    """Return how long threads of this process have waited for a core so far, summed; 0 where the system keeps quiet.

    Linux counts it: the second number of /proc/self/task/*/schedstat, in nanoseconds.
    """
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, IndexError, ValueError):  # a thread that has just ended, or a kernel without this count
            continue
    return total / 1e9
