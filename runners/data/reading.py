"""LazySplit: images that are read when a batch needs them, by processes that a torch DataLoader keeps.

A batch depends on its seed alone, not on the number of processes: every image has a seed of its own.
"""

import copy
import hashlib
import io
import logging
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from cloudpickle import Pickler
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from runners.data.augmentation import Augmentation
from runners.data.seeding import seeded
from runners.data.source import with_channels
from runners.data.splits import DataError, batch_order, normalised

logger = logging.getLogger(__name__)

BATCHES_AHEAD = 3  # per process
LONGEST_BATCH = 900  # seconds, after which a process that reads counts as dead
READ_HERE = 64  # images; so few are read sooner than a process starts
CROP_FROM = 128  # pixels a side; from here up, evaluation crops the centre of a larger image (256 for 224), as is usual


class ImageSource(Protocol):
    """A map-style dataset of images; can be pickled."""

    def __getitem__(self, index: int) -> Any:
        """Return a PIL image, or a tensor (C, H, W) of uint8 or float32; a tuple of it and its target, if it has one.

        A copy by `copy.copy` may be read without an effect on the original.

        Raises:
            DataError: the image cannot be read; the message names it.
        """
        ...


Read = tuple[Tensor, ...]  # images, and their targets where the source gives them


class Item(NamedTuple):
    """An image that is asked for.

    Attributes:
        source_index: index in the source.
        seed: of the augmentation, and of whatever a user's dataset draws.
    """

    source_index: int
    seed: int
    augment: bool


@dataclass(frozen=True, eq=False)
class Decoder(Dataset[Any]):
    """Makes tensors of equal shape from the images of a source.

    Attributes:
        mean: of values in [0, 1], one per channel of the tensors.
        size: their height and width.
        byte: whether they are uint8; else float32.
    """

    source: ImageSource
    mean: tuple[float, ...]
    size: tuple[int, int]
    augmentation: Augmentation = Augmentation()
    byte: bool = True

    def __getitems__(self, items: Sequence[Item]) -> Read | str:
        """Return images of shape (B, C, H, W), with their targets where the source gives them, or why there are none.

        An error is returned, since a DataLoader that raises an error of a process adds a traceback to its message.
        """
        try:
            images, *targets = zip(*(self.read(item) for item in items), strict=True)
            shapes = {tuple(target.shape) for part in targets for target in part}
            if len(shapes) > 1:
                raise DataError(f"the targets of a batch have the shapes {sorted(shapes)}; give all in one shape")
            return tuple(map(torch.stack, (images, *targets)))
        except DataError as error:
            return str(error)

    def read(self, item: Item) -> Read:
        """Return one image of shape (C, H, W), and its target where the source gives one; raises DataError."""
        with seeded(item.seed):
            found = self.source[item.source_index]
            if isinstance(found, tuple):
                return self._with_target(found[0], found[1], item.source_index)
            return (self._ready(found, augment=item.augment),)

    def _with_target(self, image: Any, target: Tensor, index: int) -> Read:
        """Return an image as it is and its target; raises DataError where the image would have to be scaled."""
        if (size := _size_of(image)) != self.size:
            raise DataError(
                f"image {index} has {size[0]}x{size[1]} pixels, and others {self.size[0]}x{self.size[1]}; give all in "
                "the size that the network reads, since its target could not follow"
            )
        return self._as_tensor(self._with_channels(image)), target

    def _ready(self, image: Any, *, augment: bool) -> Tensor:
        """Return an image scaled and, for training, changed at random."""
        image = self._with_channels(image)
        if not (augment and self.augmentation.crop):
            image = self._scaled(image)
        return self._augmented(image) if augment else self._as_tensor(image)

    def _with_channels(self, image: Any) -> Any:
        channels = len(self.mean)
        if isinstance(image, Tensor):
            return with_channels(image[None], channels)[0]
        return image.convert("L" if channels == 1 else "RGB")

    def prepare(self) -> None:
        """Import what reading needs; in a forked process, an import could wait for a thread that is not there."""
        Image.preinit()
        _ = self._augmented, self._as_tensor

    @cached_property
    def _augmented(self) -> Callable[[Any], Tensor]:
        return self.augmentation.per_image(self.size, self.mean, byte=self.byte)

    @cached_property
    def _as_tensor(self) -> Callable[[Any], Tensor]:
        return Augmentation().per_image(self.size, self.mean, byte=self.byte)

    def _scaled(self, image: Any) -> Any:
        """Scale the shorter side and crop the centre."""
        from torchvision.transforms.v2 import functional as transforms

        height, width = self.size
        side = max(height, width)
        larger = side * 8 // 7 if side >= CROP_FROM else side
        present = _size_of(image)
        if isinstance(image, Tensor) and present == self.size:
            return image  # a user's tensor is scaled only where it must be
        if min(present) != larger:
            image = transforms.resize(image, [larger], antialias=True)
        return transforms.center_crop(image, [height, width])


def _size_of(image: Any) -> tuple[int, int]:
    """Return height and width of a tensor or a PIL image."""
    height, width = image.shape[-2:] if isinstance(image, Tensor) else reversed(image.size)
    return height, width


class ImageReader:
    """Reads images in this process, or in others that are kept until the reader is deleted.

    It can be pickled, without its processes.

    Args:
        workers: number of processes, or -1: one where networks are trained on the processor, and as many as torch has
            threads where an accelerator leaves the processor free.
    """

    def __init__(self, decoder: Decoder, workers: int = -1) -> None:
        self.decoder, self.workers = decoder, workers
        self._loaders: dict[tuple[int, bool], tuple[DataLoader[Any], _Batches]] = {}
        self._busy = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the processes."""
        return ImageReader, (self.decoder, self.workers)

    def images(self, batches: Iterable[list[Item]], count: int, device: torch.device) -> Iterator[Read]:
        """Yield the images of every batch on `device`, of shape (B, C, H, W), with their targets where it has some.

        Args:
            count: number of images in all batches.

        Raises:
            DataError: an image cannot be read, or a process that reads was ended.
        """
        processes = self._processes(device) if count > READ_HERE and self._can_be_shared else 0
        if processes and not self._busy:  # one reading at a time has the processes
            found = self._from_processes(batches, processes, device)
        else:
            found = map(self._here.__getitems__, batches)
        yield from _ahead(map(_checked, found), device)

    def _from_processes(
        self, batches: Iterable[list[Item]], processes: int, device: torch.device
    ) -> Iterator[Read | str]:
        loader, sampler = self._loader(processes, pinned=device.type == "cuda")
        sampler.batches, self._busy = batches, True
        try:
            yield from loader
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            self._loaders.clear()
            reason = str(error).strip().splitlines()[0]
            raise DataError(
                f"a process that reads images ended ({reason}); lower --data-workers, or take 0 to read in the "
                "training process"
            ) from error
        finally:
            self._busy = False

    @cached_property
    def _here(self) -> Decoder:
        """The decoder of this process, whose dataset may open files that other processes must open for themselves."""
        return replace(self.decoder, source=copy.copy(self.decoder.source))

    @cached_property
    def _can_be_shared(self) -> bool:
        reason = why_not_shared(self.decoder.source)
        if reason and self.workers:
            logger.warning("images are read in the training process, since no other can read them (%s)", reason)
        return not reason

    def _processes(self, device: torch.device) -> int:
        if self.workers >= 0:
            return self.workers
        return 1 if device.type == "cpu" else torch.get_num_threads()

    def _loader(self, processes: int, *, pinned: bool) -> tuple[DataLoader[Any], "_Batches"]:
        """Return the loader with these processes, and the batches that it reads next."""
        if (processes, pinned) not in self._loaders:
            self.decoder.prepare()
            sampler = _Batches()
            loader: DataLoader[Any] = DataLoader(
                self.decoder,
                batch_sampler=sampler,
                num_workers=processes,
                collate_fn=_unchanged,
                pin_memory=pinned,
                worker_init_fn=_leave_interrupts,
                prefetch_factor=BATCHES_AHEAD,
                persistent_workers=True,
                timeout=LONGEST_BATCH,
                generator=torch.Generator(),  # else the loader would draw from the one that training draws from
            )
            self._loaders[processes, pinned] = loader, sampler
        return self._loaders[processes, pinned]


def why_not_shared(dataset: Any) -> str:
    """Return why several processes cannot read a dataset; empty where they can.

    An open file cannot be pickled. Forked processes would share its position, and read each other's parts.
    """
    try:
        Pickler(_Nowhere(), protocol=5, buffer_callback=lambda _buffer: None).dump(dataset)
    except Exception as error:  # of whatever kind the objects of a user raise
        return str(error)
    return ""


class _Nowhere(io.RawIOBase):
    """A file that keeps nothing."""

    @override
    def write(self, data: Any) -> int:
        return len(data)


class _Batches:
    """The sampler of a loader whose processes stay while its batches change."""

    batches: Iterable[list[Item]] = ()

    def __iter__(self) -> Iterator[list[Item]]:
        return iter(self.batches)


def _checked(found: Read | str) -> Read:
    if isinstance(found, str):
        raise DataError(found)
    return found


def _unchanged(images: Any) -> Any:
    return images


def _leave_interrupts(_worker: int) -> None:
    """Leave Ctrl-C to the process of the search, which goes on to its end with the images that it still needs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _ahead(batches: Iterator[Read], device: torch.device) -> Iterator[Read]:
    """Move batches to the device; on CUDA each one is copied while the network works on the batch before."""
    if device.type != "cuda":
        yield from (tuple(part.to(device) for part in parts) for parts in batches)
        return
    stream, copying = torch.cuda.Stream(device), deque[tuple[Read, torch.cuda.Event]]()
    for parts in batches:
        with torch.cuda.stream(stream):
            moved = tuple(part.to(device, non_blocking=True) for part in parts)
            copying.append((moved, stream.record_event()))
        if len(copying) > 1:
            yield _copied(*copying.popleft(), device)
    yield from (_copied(*copy, device) for copy in copying)


def _copied(parts: Read, end: torch.cuda.Event, device: torch.device) -> Read:
    """Return a batch on the device, for whose copy its present stream waits."""
    present = torch.cuda.current_stream(device)
    present.wait_event(end)
    for part in parts:
        part.record_stream(present)
    return parts


@dataclass(frozen=True, eq=False)
class LazySplit:
    """Images that are read from a source when a batch needs them.

    Attributes:
        reader: of the source; splits of one source share it.
        indices: indices of the images in the source, of shape (N,), int64.
        labels: of shape (N,), int64; zeros where the source gives targets with its images.
        mean, std: per channel, of values in [0, 1]; images of floats are used unchanged where they are 0 and 1.
        name: identifies the content of the source; part of the digest.
    """

    reader: ImageReader
    indices: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str = ""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in a batch."""
        return self.reader.decoder.size

    @property
    def augmentation(self) -> Augmentation:
        """The random changes of training images."""
        return self.reader.decoder.augmentation

    @property
    def byte(self) -> bool:
        """Whether the images are bytes; others may be of any scale."""
        return self.reader.decoder.byte

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
        order = batch_order(len(self), shuffle_seed, generator)[:limit][skip * batch_size :]
        batches = torch.split(order, batch_size) if len(order) else ()
        indices, seed = self.indices, shuffle_seed or 0
        asked = (_items(indices, positions, seed, augment) for positions in batches)
        read = self.reader.images(asked, len(order), device)
        for positions, (images, *targets) in zip(batches, read, strict=True):
            batch = normalised(images, self.mean, self.std, self.size)
            labels = targets[0] if targets else self.labels[positions].to(device)
            if augment and self.augmentation.mixing:
                # Seeded by the batch, so that none has to be read for the random numbers of those after it.
                mixing = torch.Generator().manual_seed(_item_seed(seed, int(positions[0])))
                batch, labels = self.augmentation.mix(batch, labels, mixing)
            yield batch, labels

    def subset(self, indices: Tensor) -> "LazySplit":
        """Return the split of the images at `indices`; no image is read."""
        return replace(self, indices=self.indices[indices], labels=self.labels[indices])

    def with_augmentation(self, augmentation: Augmentation) -> "LazySplit":
        """Return the split with another augmentation, and a reader of its own."""
        decoder = replace(self.reader.decoder, augmentation=augmentation, mean=self.mean)
        return replace(self, reader=ImageReader(decoder, self.reader.workers))

    def digest(self) -> str:
        """Return a hash of `name`, indices, labels and preparation; no image is read."""
        parts = (self.name, self.mean, self.std, self.size, self.augmentation)
        digest = hashlib.sha256(repr(parts).encode())
        digest.update(self.indices.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


def _items(indices: Tensor, positions: Tensor, seed: int, augment: bool) -> list[Item]:
    """Describe the images at some positions of a split, whose indices are those in the source.

    The position seeds the augmentation, and the index what an image draws without one. This is no method: a loader
    keeps the batches that it was asked for, and if these kept the split, only the garbage collector could delete both,
    in the midst of which the processes do not hear that they should end.
    """
    chosen = indices[positions].tolist()
    if not augment:
        return [Item(index, index, augment=False) for index in chosen]
    seeds = [_item_seed(seed, position) for position in positions.tolist()]
    return [Item(index, own, augment=True) for index, own in zip(chosen, seeds, strict=True)]


def _item_seed(seed: int, position: int) -> int:
    return (seed * 1_000_003 + position) % 2**63
