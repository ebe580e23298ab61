"""FolderIndex: the image files of a folder and their classes, cached until the listing of the folder changes.

A folder may hold a million files. Listing them takes seconds; reading the header of each one, to name a file that is no
image before any training, takes minutes and is done once. A process that reads images is told the folder and a digest,
and takes the index from the cache.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from runners.cache import cache_root, digest_of, write_cached
from runners.data.samples import of_eight_bits
from runners.data.splits import DataError

logger = logging.getLogger(__name__)

LISTING_THREADS = 16  # a network drive answers many requests at once
SIZED_IMAGES = 64  # whose median shorter side is that of the folder
SAMPLED_IMAGES = 64  # whose content is part of the fingerprint
LARGEST_IMAGE = 89_478_485  # pixels, 256 MiB as RGB, from where Pillow warns too; a small file may claim many more
LARGE = 100_000  # files, from which on the log says that headers are read


@dataclass(frozen=True, eq=False)
class FolderIndex:
    """The image files below a folder, class by class, in the order of their paths.

    Attributes:
        paths: relative to the folder, joined, in bytes; of shape (B,), uint8.
        ends: where each path ends in `paths`, of shape (N,), int64.
        labels: class of each file, of shape (N,), int64.
        side: median shorter side of the images in pixels.
        content: hash of paths, sizes and classes of the files.
    """

    folder: Path
    paths: Tensor
    ends: Tensor
    labels: Tensor
    side: int
    content: str

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.ends)

    def path(self, index: int) -> Path:
        """Return the path of a file."""
        start = int(self.ends[index - 1]) if index else 0
        return self.folder / os.fsdecode(self.paths[start : int(self.ends[index])].numpy().tobytes())


@dataclass
class ImageFiles:
    """The images of a folder; a file is read when its index is asked for. Pickled without the index.

    Attributes:
        content: that of the index.
    """

    folder: Path
    classes: tuple[str, ...]
    content: str
    _index: FolderIndex | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the index."""
        return self.__dict__ | {"_index": None}

    def __copy__(self) -> "ImageFiles":
        """Return the same images, with their index: reading one changes nothing."""
        return self

    def __getitem__(self, index: int) -> Any:
        """Return the PIL image.

        Raises:
            DataError: the file cannot be read as an image, or the folder has other files by now.
        """
        path = self.index.path(index)
        with _opened(path) as image:
            return of_eight_bits(image).convert("RGB")

    @property
    def index(self) -> FolderIndex:
        """The index; in a process that was not given it, from the cache or by listing the folder."""
        if self._index is None:
            cached = _cached(self.folder)
            known = cached is not None and cached[1].content == self.content
            index = cached[1] if cached is not None and known else index_folder(self.folder, self.classes)
            if index.content != self.content:
                raise DataError(f"the files in {self.folder} have changed since the search began; start a new one")
            self._index = index
        return self._index


def index_folder(folder: Path, classes: Sequence[str]) -> FolderIndex:
    """List the images of every class folder; read the header of each file unless the same listing is in the cache.

    Raises:
        DataError: a file is no image.
    """
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        found = list(pool.map(lambda name: _listed(folder, name), classes))
        files = [file for of_class in found for file in of_class]
        paths = [os.fsencode(path) for path, _, _ in files]
        joined, ends = b"".join(paths), np.cumsum([len(path) for path in paths], dtype=np.int64)
        labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(files) for files in found])
        content = _digest(joined, ends, labels, np.array([size for _, size, _ in files], dtype=np.int64))
        listing = _digest(content.encode(), np.array([time for _, _, time in files], dtype=np.int64))
        cached = _cached(folder)
        if cached is not None and cached[0] == listing:
            return cached[1]
        if len(files) >= LARGE:
            logger.warning("reading the headers of %d new or changed images in %s, once", len(files), folder)
        sides = list(pool.map(_shorter_side, (folder / path for path, _, _ in files)))
    index = FolderIndex(
        folder=folder,
        paths=torch.from_numpy(np.frombuffer(bytearray(joined), dtype=np.uint8)),
        ends=torch.from_numpy(ends),
        labels=torch.from_numpy(labels),
        side=int(median(sides[:: max(1, len(sides) // SIZED_IMAGES)])) if sides else 0,
        content=content,
    )
    _cache(index, listing)
    return index


def _digest(*parts: bytes | NDArray[np.int64]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(bytes(part))
    return digest.hexdigest()


def sample_digest(index: FolderIndex) -> str:
    """Return a hash of the content of some files, spread over the whole folder."""
    digest = hashlib.sha256()
    for position in range(0, len(index), max(1, len(index) // SAMPLED_IMAGES)):
        path = index.path(position)
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise _unreadable(path, error) from error
    return digest.hexdigest()


def _listed(folder: Path, name: str) -> list[tuple[str, int, int]]:
    """Return path, size and time of change of every image in a class folder, ordered by path; links are not entered.

    Raises:
        DataError: a link leads out of the folder or nowhere, or what is named like an image is no regular file.
    """
    found: list[tuple[str, int, int]] = []
    _check_link(folder, name)
    pending, nested = [name] if (folder / name).is_dir() else [], False
    while pending:
        inner = pending.pop()
        with os.scandir(folder / inner) as entries:
            for entry in entries:
                path = f"{inner}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                    nested = True
                elif entry.name.lower().endswith(IMG_EXTENSIONS):
                    if entry.is_symlink():
                        _check_link(folder, path)
                    if not entry.is_file():
                        raise DataError(f"{folder / path} is named like an image and is no regular file; remove it")
                    status = entry.stat()
                    found.append((path, status.st_size, status.st_mtime_ns))
    # By the parts of the paths, not by their text, in which "a-b/c" comes before "a/c"; one folder needs no parts.
    return sorted(found, key=(lambda file: file[0].split("/")) if nested else None)


def _check_link(folder: Path, inner: str) -> None:
    """Raise DataError for a link to something outside of the folder, or to nothing."""
    path = folder / inner
    if path.is_symlink() and not (path.exists() and path.resolve().is_relative_to(folder.resolve())):
        target = os.readlink(path)
        raise DataError(
            f"{path} is a link to {target!r}, which is not in {folder}; put a copy in its place, or remove it"
        )


def _index_file(folder: Path) -> Path:
    return cache_root() / "folders" / f"{digest_of(str(folder.resolve()))}.safetensors"


def _cached(folder: Path) -> tuple[str, FolderIndex] | None:
    """Return the digest of the listing and the index that are cached for a folder; None where there are none."""
    try:
        with safe_open(_index_file(folder), "pt") as file:
            noted = file.metadata()
            paths, ends, labels = (file.get_tensor(name) for name in ("paths", "ends", "labels"))
        return noted["listing"], FolderIndex(folder, paths, ends, labels, int(noted["side"]), noted["content"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _cache(index: FolderIndex, listing: str) -> None:
    tensors = {"paths": index.paths, "ends": index.ends, "labels": index.labels}
    noted = {"listing": listing, "content": index.content, "side": str(index.side)}
    write_cached(_index_file(index.folder), save(tensors, noted))


def _shorter_side(file: Path) -> int:
    """Return the shorter side of an image in pixels, from the header of its file; raises DataError."""
    with _opened(file) as image:
        return min(image.size)


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Open an image whose header has been read.

    Raises:
        DataError: the file has no header of an image, claims more than LARGEST_IMAGE pixels, or cannot be read inside
            the block.
    """
    try:
        with Image.open(file) as image:
            if image.width * image.height > LARGEST_IMAGE:
                size = f"{image.width:,} x {image.height:,} pixels"
                raise DataError(f"{file} claims {size}, over the {LARGEST_IMAGE:,} allowed; scale or remove it")
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _unreadable(file, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, PermissionError):
        return DataError(f"{path} cannot be read: {error.strerror}; let this user read it, or remove it")
    reason = str(error).replace(repr(str(path)), "file").strip() or type(error).__name__
    return DataError(f"{path} cannot be read as an image ({reason}); repair or remove it")
