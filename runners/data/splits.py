"""Splits: labelled images that any process can read as batches of normalised float32.

`TensorSplit` holds small images in memory, mostly as uint8, and works on whole batches. `runners.data.reading` has the
split of images that are read when a batch needs them. The same seed gives the same batches on every device.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from runners.data.augmentation import Augmentation
from spaces.errors import SlimfrontError

HELD_BATCH = 64  # images; a process reads a whole batch, so that several share the reading of many images


class DataError(SlimfrontError):
    """Images that are missing, unreadable, or cannot be split as asked."""


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
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (B, C, H, W) normalised float32, labels (B,) int64) on `device`; the last may be smaller.

        Args:
            shuffle_seed: determines order and augmentation; None keeps the stored order, which mixes the classes.
            augment: whether images are changed at random. Where images are mixed, labels are the shares of the classes
                in each, float32 of shape (B, classes).
            limit: number of images after which to stop; None takes all.
            skip: number of batches to leave out at the beginning; those after them are what they are without it.

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
    _moved: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without copies on other devices."""
        return self.__dict__ | {"_moved": {}}

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
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised batches; see `Split.batches`."""
        generator = torch.Generator().manual_seed(shuffle_seed or 0)
        images, labels = self._on(device)
        order = batch_order(len(self), shuffle_seed, generator)[:limit].to(images.device)
        for number, chosen in enumerate(torch.split(order, batch_size)):
            batch = images[chosen].to(device)
            if augment:
                batch = self.augmentation(batch, generator, self.mean)
            batch = normalised(batch, self.mean, self.std, self.size)
            classes = labels[chosen].to(device)
            if augment and self.augmentation.mixing:
                batch, classes = self.augmentation.mix(batch, classes, generator)
            if number >= skip:  # a batch that is left out has drawn its random numbers
                yield batch, classes

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return images and labels on a device, to which they are moved once; unmoved where it has no room for them."""
        if device.type == self.images.device.type == "cpu":
            return self.images, self.labels
        if device not in self._moved:
            try:
                self._moved[device] = self.images.to(device), self.labels.to(device)
            except torch.OutOfMemoryError:
                self._moved[device] = self.images, self.labels
        return self._moved[device]

    def subset(self, indices: Tensor) -> "TensorSplit":
        """Return the split of the images at `indices`, which are copied."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def with_augmentation(self, augmentation: Augmentation) -> "TensorSplit":
        """Return the split with another augmentation."""
        return replace(self, augmentation=augmentation)

    @property
    def byte(self) -> bool:
        """Whether the images are bytes; others may be of any scale."""
        return not self.images.is_floating_point()

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
        batches = list(split.batches(HELD_BATCH, device=device, limit=count))
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
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the split; see `Split.batches`."""
        count = len(self) if limit is None else min(limit, len(self))
        if augment or shuffle_seed is not None or device != self._device or count > len(self._labels):
            yield from self._split.batches(
                batch_size, device=device, shuffle_seed=shuffle_seed, augment=augment, limit=limit, skip=skip
            )
            return
        for start in range(skip * batch_size, count, batch_size):
            held = slice(start, min(start + batch_size, count))
            yield self._images[held], self._labels[held]

    def subset(self, indices: Tensor) -> Split:
        """Return a subset of the split, of which nothing is held."""
        return self._split.subset(indices)

    def digest(self) -> str:
        """Return the digest of the split."""
        return self._split.digest()


def batch_order(count: int, shuffle_seed: int | None, generator: torch.Generator) -> Tensor:
    """Return the order in which images are taken; see `Split.batches`."""
    return torch.arange(count) if shuffle_seed is None else torch.randperm(count, generator=generator)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, int]) -> Tensor:
    """Return images of shape (B, C, H, W) as float32, scaled to `size` and normalised per channel."""
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    images = images.to(torch.float32)
    if tuple(images.shape[-2:]) != size:
        images = functional.interpolate(images, size=size, mode="bilinear", antialias=True)
    offset = torch.tensor(mean, device=images.device)[:, None, None] * unit
    scale = 1 / (torch.tensor(std, device=images.device)[:, None, None] * unit)
    return (images - offset) * scale
