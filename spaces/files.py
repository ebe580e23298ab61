"""Writing files atomically: no reader ever sees a file that is half written."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

LEAST_ROOM = 1 << 18  # bytes; a disk with less is full


def no_room(error: OSError) -> bool:
    """Return whether a write failed because the disk is full, or the user's share of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException, folder: Path) -> bool:
    """Return whether an error comes from a full disk: it says so, or the disk of this folder has no room left.

    Libraries that write files raise errors of their own classes.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return no_room(error)
    try:
        return isinstance(error, Exception) and shutil.disk_usage(folder).free < LEAST_ROOM
    except OSError:
        return False


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, making its folder; readers see either the old file or the whole new one.

    Raises:
        OSError: the folder cannot be made or written to; no temporary file stays behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
