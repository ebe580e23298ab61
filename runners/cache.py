"""Where files that can be made again are kept, and how they are written so that no reader sees half of one."""

import os
import tempfile
from pathlib import Path

from spaces.errors import SlimfrontError


class CacheError(SlimfrontError):
    """A folder in which nothing can be written."""


def cache_root() -> Path:
    """Return the cache folder: SLIMFRONT_CACHE, else XDG_CACHE_HOME/slimfront, else ~/.cache/slimfront."""
    if own := os.environ.get("SLIMFRONT_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "slimfront"
    return Path.home() / ".cache" / "slimfront"


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`; another process sees the old file, or the whole new one.

    Raises:
        CacheError: the folder cannot be made or written to; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CacheError(
            f"cannot write {path}: {error.strerror or error}; free or unlock the disk, "
            "or point SLIMFRONT_CACHE at a folder that can be written"
        ) from error
