"""The cache folder, for files that can be made again."""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

from spaces.files import write_atomically

_log = logging.getLogger(__name__)
_unwritable: set[Path] = set()  # cache folders of which a warning was given


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


def is_cached(path: Path) -> bool:
    """Return whether the cache has a file; where this user may not look into the folder, it has none."""
    return os.path.isfile(path)  # `Path.is_file` raises there


def lock_folder() -> Path:
    """Return the folder for locks among the processes of this user: in the cache, where that can be written to."""
    folder = cache_root() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"slimfront-locks-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def write_cached(path: Path, content: bytes) -> None:
    """Write `content` to `path` in the cache, completely or not at all.

    Where the folder cannot be written to, a warning says so, once: what is computed must not be lost for a cache.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        folder = cache_root()
        if folder in _unwritable:
            return
        _unwritable.add(folder)
        _log.warning(
            "the cache %s cannot be written (%s): the search goes on, and the next one computes anew what is not kept; "
            "make room there, or point SLIMFRONT_CACHE at another folder",
            folder,
            error.strerror or error,
        )
