"""Memory that this process keeps, so that what a network takes does not depend on what ran here before.

By default glibc gives large blocks back to the system at every call of a network, or keeps them, by what the process
has allocated and freed before. ResNet-20 at batch 8 then meets 500 to 1,600 page faults a call and takes 4.9 or 5.8 ms
on one thread, steadily within a process and otherwise in the next. Runtimes that serve networks keep their memory.
"""

import ctypes
import functools
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, see malloc.h
KEPT = 2**30  # bytes: blocks up to this are neither mapped one by one nor given back


@functools.cache
def keep_freed_memory() -> bool:
    """Have this process keep what it frees, from now on; return whether its C library can be told so (glibc can)."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, KEPT) == 1 for option in (TRIM_THRESHOLD, MMAP_THRESHOLD))
