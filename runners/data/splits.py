"""Splits: labelled images that any process can read as batches of normalised float32.

There are two kinds. `TensorSplit` holds small images in memory, mostly as uint8, and works on whole batches.
`LazySplit` reads from a map-style dataset, such as a folder of files. The same seed gives the same batches on every
device and with any number of reading threads.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from spaces.errors import SlimfrontError

READING_THREADS = 8  # at most; decoding and scaling release the GIL
BATCHES_AHEAD = 3
CROP_FROM = 128  # pixels a side; from here up, evaluation crops the centre of a larger image (256 for 224), as is usual


class DataError(SlimfrontError):
    """Images that are missing, unreadable, or cannot be split as asked."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Attributes:
        shift: largest shift in pixels, vertically and horizontally.
        flip: whether images are flipped horizontally with probability 1/2.
        crop: whether a random crop is scaled to full size; only where images are read from files.
        padding_mode: what fills the border of a shifted image, "reflect" (the image) or "constant" (black).
        min_crop_area: smallest share of the area that a crop keeps.
    """

    shift: int = 0
    flip: bool = False
    crop: bool = False
    padding_mode: str = "reflect"
    min_crop_area: float = 0.35

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return images of the same shape (B, C, H, W), each shifted and flipped independently."""
        if self.shift:
            images = _shifted(images, self.shift, generator, self.padding_mode)
        if self.flip:
            flipped = torch.rand(len(images), generator=generator).to(images.device) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        return images


class Split(Protocol):
    """Labelled images; implementations can be pickled."""

    @property
    def labels(self) -> Tensor:
        """Class of every image, int64, of shape (len(self),)."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device,
        shuffle_seed: int | None = None,
        augment: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (B, C, H, W) normalised float32, labels (B,) int64) on `device`; the last may be smaller.

        Args:
            shuffle_seed: determines order and augmentation; None keeps the stored order, which mixes the classes.
            augment: whether images are changed at random.
            limit: number of images after which to stop; None takes all.

        Raises:
            DataError: an image cannot be read; the message names it.
        """
        ...

    def subset(self, indices: Tensor) -> "Split":
        """Return the split of the images at `indices`, in that order."""
        ...

    def digest(self) -> str:
        """Return a hash of the content; it is equal for equal images, labels and preparation."""
        ...


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """Images in memory.

    Attributes:
        images: of shape (N, C, H, W), uint8 or float in [0, 1].
        labels: of shape (N,), int64.
        mean, std: per channel, of values in [0, 1].
        size: height and width to which batches are scaled.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    augmentation: Augmentation = Augmentation()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device,
        shuffle_seed: int | None = None,
        augment: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised batches; see `Split.batches`."""
        generator = torch.Generator().manual_seed(shuffle_seed or 0)
        order = _order(len(self), shuffle_seed, generator)[:limit].to(device)
        images, labels = self.images.to(device), self.labels.to(device)
        for chosen in torch.split(order, batch_size):
            batch = images[chosen]
            if augment:
                batch = self.augmentation(batch, generator)
            yield _normalised(batch, self.mean, self.std, self.size), labels[chosen]

    def subset(self, indices: Tensor) -> "TensorSplit":
        """Return the split of the images at `indices`, which are copied."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def digest(self) -> str:
        """Return a hash of images, labels and preparation."""
        digest = hashlib.sha256(repr((self.mean, self.std, self.size, self.augmentation)).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


class HeldSplit:
    """A split whose first images are held on a device, decoded and normalised, for what reads them many times.

    Batches of these alone come from memory; all others come from the split itself.

    Args:
        count: number of images that are held; as float32 they take 0.6 MB each at 224 x 224.
    """

    def __init__(self, split: Split, count: int, device: torch.device) -> None:
        self._split, self._device = split, device
        batches = list(split.batches(max(1, count), device=device, limit=count))
        self._images = torch.cat([images for images, _ in batches]) if batches else torch.empty(0)
        self._labels = torch.cat([labels for _, labels in batches]) if batches else split.labels[:0]

    @property
    def labels(self) -> Tensor:
        """Class of every image of the split."""
        return self._split.labels

    def __len__(self) -> int:
        """Return the number of images of the split."""
        return len(self._split)

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device,
        shuffle_seed: int | None = None,
        augment: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the split; see `Split.batches`."""
        count = len(self) if limit is None else min(limit, len(self))
        if augment or shuffle_seed is not None or device != self._device or count > len(self._labels):
            split = self._split
            yield from split.batches(batch_size, device=device, shuffle_seed=shuffle_seed, augment=augment, limit=limit)
            return
        for start in range(0, count, batch_size):
            held = slice(start, min(start + batch_size, count))
            yield self._images[held], self._labels[held]

    def subset(self, indices: Tensor) -> Split:
        """Return a subset of the split, of which nothing is held."""
        return self._split.subset(indices)

    def digest(self) -> str:
        """Return the digest of the split."""
        return self._split.digest()


class ImageSource(Protocol):
    """A map-style dataset of (image, class) that `LazySplit` reads from, as torchvision's datasets are."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return a PIL image or a tensor (C, H, W), and its class; a uint8 tensor is normalised, a float one is not."""
        ...


@dataclass(frozen=True, eq=False)
class LazySplit:
    """Images that are read from a dataset when a batch needs them.

    Attributes:
        source: the dataset; can be pickled.
        indices: indices of the images in `source`, of shape (N,), int64.
        labels: of shape (N,), int64.
        mean, std: per channel, of values in [0, 1].
        size: height and width of the images in a batch.
        name: identifies the content of `source`; part of the digest.
    """

    source: ImageSource
    indices: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    augmentation: Augmentation = Augmentation()
    name: str = ""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device,
        shuffle_seed: int | None = None,
        augment: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised batches; see `Split.batches`."""
        order = _order(len(self), shuffle_seed, torch.Generator().manual_seed(shuffle_seed or 0))[:limit]
        read = partial(self._read, augment_seed=(shuffle_seed or 0) if augment else None)
        # Several threads pay where an accelerator leaves the processor free; on the processor they slow training.
        threads = 1 if device.type == "cpu" else min(READING_THREADS, max(1, (os.cpu_count() or 2) - 1))
        for positions, images in _read_ahead(read, torch.split(order, batch_size), threads):
            batch = _normalised(images.to(device), self.mean, self.std, self.size)
            yield batch, self.labels[positions].to(device)

    def _read(self, position: int, augment_seed: int | None) -> Tensor:
        """Return the image at its final size; the position seeds its augmentation, whatever the reading order."""
        image, _ = self.source[int(self.indices[position])]
        if isinstance(image, Tensor):
            return image
        from torchvision.transforms import functional as transforms

        height, width = self.size
        image = image.convert("L" if len(self.mean) == 1 else "RGB")
        if augment_seed is None or not self.augmentation.crop:
            larger = max(height, width) * 8 // 7 if max(height, width) >= CROP_FROM else max(height, width)
            if min(image.size) != larger:
                image = transforms.resize(image, [larger], antialias=True)
            return transforms.pil_to_tensor(transforms.center_crop(image, [height, width]))
        generator = torch.Generator().manual_seed((augment_seed * 1_000_003 + position) % 2**63)
        box = _random_box(image.size[1], image.size[0], self.augmentation.min_crop_area, generator)
        image = transforms.resized_crop(image, *box, [height, width], antialias=True)
        if self.augmentation.flip and torch.rand((), generator=generator) < 0.5:
            image = transforms.hflip(image)
        return transforms.pil_to_tensor(image)

    def subset(self, indices: Tensor) -> "LazySplit":
        """Return the split of the images at `indices`; no image is read."""
        return replace(self, indices=self.indices[indices], labels=self.labels[indices])

    def digest(self) -> str:
        """Return a hash of `name`, indices, labels and preparation; no image is read."""
        parts = (self.name, self.mean, self.std, self.size, self.augmentation)
        digest = hashlib.sha256(repr(parts).encode())
        digest.update(self.indices.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


def _read_ahead(
    read: Callable[[int], Tensor], batches: Sequence[Tensor], threads: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (positions, stacked images) in order, while threads read the next batches.

    A torch DataLoader starts worker processes at every call, and every epoch and every measurement is a call. A batch
    of 32 JPEGs of 256x256 takes 0.3 s with 8 workers and 0.1 s with one thread here. Without workers it does not read
    ahead: an epoch of 480 such images takes 1.2 s, and 0.8 s with one thread here (2 cores). Workers also wrap the
    message of a DataError in a traceback.
    """
    pool = ThreadPoolExecutor(threads)
    waiting: deque[tuple[Tensor, list[Future[Tensor]]]] = deque()
    upcoming = iter(batches)
    try:
        while True:
            for positions in islice(upcoming, BATCHES_AHEAD - len(waiting)):
                waiting.append((positions, [pool.submit(read, position) for position in positions.tolist()]))
            if not waiting:
                return
            positions, futures = waiting.popleft()
            yield positions, torch.stack([future.result() for future in futures])
    finally:
        pool.shutdown(cancel_futures=True)


def _order(count: int, shuffle_seed: int | None, generator: torch.Generator) -> Tensor:
    return torch.arange(count) if shuffle_seed is None else torch.randperm(count, generator=generator)


def _normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, int]) -> Tensor:
    """Return images of shape (B, C, H, W) as float32, scaled to `size` and normalised per channel."""
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    images = images.to(torch.float32)
    if tuple(images.shape[-2:]) != size:
        images = functional.interpolate(images, size=size, mode="bilinear", antialias=True)
    offset = torch.tensor(mean, device=images.device)[:, None, None] * unit
    scale = 1 / (torch.tensor(std, device=images.device)[:, None, None] * unit)
    return (images - offset) * scale


def _shifted(images: Tensor, most: int, generator: torch.Generator, padding_mode: str) -> Tensor:
    """Shift each image of (B, C, H, W) by up to `most` pixels both ways."""
    sides = images.shape[-2:]
    moves = torch.randint(-most, most + 1, (2, len(images), 1), generator=generator).to(images.device)
    index = [torch.arange(side, device=images.device) + move for side, move in zip(sides, moves, strict=True)]
    if padding_mode == "constant":
        images, (rows, columns) = functional.pad(images, (most,) * 4), (places + most for places in index)
    else:
        rows, columns = (_reflected(places, side) for places, side in zip(index, sides, strict=True))
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _reflected(index: Tensor, side: int) -> Tensor:
    """Return the indices inside an image that those outside reflect to; the edge itself is not repeated."""
    return (side - 1) - ((side - 1) - index.abs()).abs()


def _random_box(height: int, width: int, least_area: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw a box (top, left, height, width) of at least this share of the area, with an aspect ratio of 3:4 to 4:3."""
    area, stretch, down, right = torch.rand(4, generator=generator).tolist()
    share = least_area + (1 - least_area) * area
    ratio = (3 / 4) * (16 / 9) ** stretch
    box_height = min(height, max(1, round((height * width * share / ratio) ** 0.5)))
    box_width = min(width, max(1, round((height * width * share * ratio) ** 0.5)))
    return int(down * (height - box_height + 1)), int(right * (width - box_width + 1)), box_height, box_width
