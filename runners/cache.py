"""The cache folder, for files that can be made again."""

import hashlib
import json
import os
from pathlib import Path

from spaces.errors import SlimfrontError
from spaces.files import write_atomically


class CacheError(SlimfrontError):
    """A cache folder that cannot be written to."""


def cache_root() -> Path:
    """Return the cache folder: SLIMFRONT_CACHE, else XDG_CACHE_HOME/slimfront, else ~/.cache/slimfront."""
    if own := os.environ.get("SLIMFRONT_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "slimfront"
    return Path.home() / ".cache" / "slimfront"


def digest_of(described: object) -> str:
    """Return the SHA-256 digest of plain JSON data, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def write_cached(path: Path, content: bytes) -> None:
    """Write `content` to `path` in the cache, completely or not at all.

    Raises:
        CacheError: the folder cannot be made or written to; nothing is left behind.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise CacheError(
            f"cannot write {path}: {error.strerror or error}; free or unlock the disk, "
            "or point SLIMFRONT_CACHE at a folder that can be written"
        ) from error
