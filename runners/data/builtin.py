"""The datasets known by name: three from scikit-learn's digits, one of letters, three that torchvision downloads."""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from runners.cache import cache_root
from runners.config import DataConfig
from runners.data.augmentation import Augmentation
from runners.data.clutter import Clutter, clutter
from runners.data.glyphs import SIDE, TEST_FONTS, TRAIN_FONTS, draw_glyphs, glyph_masks, package_folder, photographs
from runners.data.source import TEST_SEED, Shape, Source, class_mixed_order, shape_for, with_channels
from runners.data.splits import DataError, TensorSplit

DIGITS_SIDE = 32
DIGITS_TEST_SHARE = 0.2
CLUTTER_TRAIN_IMAGES = 6000
CLUTTER_TEST_IMAGES = 2000
# So few and so easy that a network learns them in some minutes on a processor, and so hard that narrow ones differ.
COLOURED_TRAIN_IMAGES = 1250
COLOURED_TEST_IMAGES = 500
COLOURED = Clutter(smallest=21.0, slant=15.0, below=1, darkest=0.6, noise=0.04)
GLYPH_TRAIN_IMAGES = 4000
GLYPH_TEST_IMAGES = 2000
DOWNLOAD_SECONDS = 20.0  # a server that sends nothing for this long counts as unreachable
# As torchvision names them.
_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "mnist": "MNIST"}


def digits(config: DataConfig, input_shape: Shape | None) -> Source:
    """Load scikit-learn's 1797 handwritten digits, scaled from 8x8 to 32x32; 20% of them are test images."""
    images, labels = _scanned_digits()
    side = [DIGITS_SIDE, DIGITS_SIDE]
    scaled = functional.interpolate(images, size=side, mode="bilinear", antialias=True)
    scaled = (scaled * 255).round().clamp(0, 255).to(torch.uint8)
    order = class_mixed_order(labels, TEST_SEED)
    aside = round(DIGITS_TEST_SHARE * len(order))
    return _source(
        (scaled[order[aside:]], labels[order[aside:]]),
        (scaled[order[:aside]], labels[order[:aside]]),
        shape_for(config, input_shape, (3, DIGITS_SIDE, DIGITS_SIDE)),
        Augmentation(shift=2),
    )


def cluttered_digits(config: DataConfig, input_shape: Shape | None) -> Source:
    """Make 8000 hard images out of the handwritten digits (`runners.data.clutter`); train and test share no digit."""
    return _cluttered(config, input_shape, (CLUTTER_TRAIN_IMAGES, CLUTTER_TEST_IMAGES), Clutter())


def coloured_digits(config: DataConfig, input_shape: Shape | None) -> Source:
    """Make 1750 images like those of `cluttered_digits` that are easier; train and test share no digit."""
    return _cluttered(config, input_shape, (COLOURED_TRAIN_IMAGES, COLOURED_TEST_IMAGES), COLOURED)


def _cluttered(config: DataConfig, input_shape: Shape | None, counts: tuple[int, int], settings: Clutter) -> Source:
    images, labels = _scanned_digits()
    order = class_mixed_order(labels, TEST_SEED)
    aside = round(DIGITS_TEST_SHARE * len(order))
    return _source(
        clutter(images[order[aside:]], labels[order[aside:]], counts[0], 1, settings),
        clutter(images[order[:aside]], labels[order[:aside]], counts[1], 2, settings),
        shape_for(config, input_shape, (3, DIGITS_SIDE, DIGITS_SIDE)),
        Augmentation(shift=2),
    )


def glyphs(config: DataConfig, input_shape: Shape | None) -> Source:
    """Draw 6000 letters over photographs (`runners.data.glyphs`), at 64x64 for inputs above 32x32, else at 32x32."""
    shape = shape_for(config, input_shape, (3, SIDE // 2, SIDE // 2))
    side = SIDE if max(shape[1:]) > SIDE // 2 else SIDE // 2
    return _source(
        draw_glyphs(glyph_masks(TRAIN_FONTS), photographs(train=True), GLYPH_TRAIN_IMAGES, 1, side),
        draw_glyphs(glyph_masks(TEST_FONTS), photographs(train=False), GLYPH_TEST_IMAGES, 2, side),
        shape,
        Augmentation(shift=side // 16),
    )


def cifar10(config: DataConfig, input_shape: Shape | None) -> Source:
    """Load CIFAR-10: 50,000 training and 10,000 test photographs of 32x32."""
    return _fetched("CIFAR10", config, input_shape)


def cifar100(config: DataConfig, input_shape: Shape | None) -> Source:
    """Load CIFAR-100: 50,000 training and 10,000 test photographs of 32x32."""
    return _fetched("CIFAR100", config, input_shape)


def mnist(config: DataConfig, input_shape: Shape | None) -> Source:
    """Load MNIST: 60,000 training and 10,000 test digits of 28x28."""
    return _fetched("MNIST", config, input_shape)


def _scanned_digits() -> tuple[Tensor, Tensor]:
    """Read the file of scikit-learn's `load_digits`: images of shape (1797, 1, 8, 8) in [0, 1], and labels.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    import numpy as np

    file = package_folder("sklearn") / "datasets" / "data" / "digits.csv.gz"
    try:
        rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the digits cannot be read from {file} ({error}); install scikit-learn from its wheel, which brings them"
        ) from error
    return rows[:, :-1].reshape(-1, 1, 8, 8) / 16, rows[:, -1].to(torch.int64)


def _source(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], shape: Shape, augmentation: Augmentation
) -> Source:
    images = with_channels(train[0], shape[0])
    values = images.to(torch.float32).transpose(0, 1).flatten(1) / 255
    mean, std = tuple(values.mean(1).tolist()), tuple(values.std(1).clamp(min=1e-3).tolist())
    size = shape[1:]
    return Source(
        train=TensorSplit(images, train[1], mean, std, size, augmentation),
        test=TensorSplit(with_channels(test[0], shape[0]), test[1], mean, std, size, augmentation),
        num_classes=int(train[1].max()) + 1,
        input_shape=shape,
    )


def check_on_disk(config: DataConfig) -> None:
    """Raise a DataError for a dataset that `load_data` would have to download first."""
    folder = _FOLDERS.get(config.name)
    if folder is not None and not (_root(config) / folder).is_dir():
        raise DataError(
            f"{config.name} is not in {_root(config)} and would have to be fetched; name the folder that holds "
            f"{folder!r} with --data-dir, or run the search, which fetches it"
        )


def _root(config: DataConfig) -> Path:
    return Path(config.data_dir).expanduser() if config.data_dir else cache_root() / "data"


def _fetched(kind: str, config: DataConfig, input_shape: Shape | None) -> Source:
    """Load one of torchvision's small datasets into memory; download it first where it is not on disk."""
    from torchvision import datasets

    root, folder = _root(config), _FOLDERS[config.name]
    dataset: Callable[..., Any] = getattr(datasets, kind)
    if not (root / folder).is_dir():
        _fetch(dataset, root, folder, config.name)
    try:
        parts = [dataset(str(root), train=train) for train in (True, False)]
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{config.name} in {root / folder} is incomplete or damaged ({error}); delete that folder to fetch it anew"
        ) from error
    train, test = ((_channels_first(part.data), torch.as_tensor(part.targets, dtype=torch.int64)) for part in parts)
    natural = (3, *train[0].shape[2:])
    # A flipped digit is no digit.
    augmentation = Augmentation(shift=2) if kind == "MNIST" else Augmentation(shift=4, flip=True)
    augmentation = replace(augmentation, padding_mode=config.padding_mode)
    return _source(train, test, shape_for(config, input_shape, natural), augmentation)


def _channels_first(images: Any) -> Tensor:
    tensor = torch.as_tensor(images)
    return tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()


def _fetch(dataset: Callable[..., Any], root: Path, folder: str, name: str) -> None:
    """Download into a temporary folder, and move the dataset to its place only when it is complete and verified.

    Raises:
        DataError: the download failed; nothing is left behind.
    """
    with _staging(root, name) as staging:
        default_timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_SECONDS)
        try:
            dataset(str(staging), train=True, download=True)
            (staging / folder).rename(root / folder)
        except Exception as error:  # urllib, ssl, tarfile and torchvision raise errors of their own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(
                f"{name} is not in {root} and cannot be fetched ({reason}); put its folder {folder!r} there, or name "
                "the folder that holds it with --data-dir"
            ) from error
        finally:
            socket.setdefaulttimeout(default_timeout)


@contextmanager
def _staging(root: Path, name: str) -> Iterator[Path]:
    """Give a temporary folder inside `root`; afterwards remove it, and every folder made for it that stayed empty."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".fetching-", dir=root))
    except OSError as error:
        raise DataError(
            f"{name} is not in {root}, and nothing can be written there ({error.strerror or error}); name a folder "
            "that can be written with --data-dir"
        ) from error
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in missing:
            if folder.is_dir() and not os.listdir(folder):
                folder.rmdir()
