"""Images read from a folder of files, or from a pair of datasets that a user's function returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from runners.config import DataConfig
from runners.data.source import TEST_SEED, Shape, Source, class_mixed_order, shape_for, with_channels
from runners.data.splits import Augmentation, DataError, ImageSource, LazySplit, TensorSplit

# Mean and standard deviation of ImageNet per colour, in [0, 1], which networks with published weights expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
TEST_SHARE = 0.2  # of the images in a folder without a test set of its own
SIZED_IMAGES = 64  # whose median side is the natural size
SMALLEST_SIDE, LARGEST_SIDE, SIDE_STEP = 32, 224, 32
LAYOUT = "PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or PATH/CLASS/*.jpg"


@dataclass(frozen=True)
class ImageFiles:
    """Image files and their classes; a file is read when its index is asked for."""

    samples: tuple[tuple[str, int], ...]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return the PIL image and its class.

        Raises:
            DataError: the file cannot be read as an image.
        """
        from torchvision.datasets.folder import pil_loader

        path, label = self.samples[index]
        try:
            return pil_loader(path), label
        except (OSError, ValueError, SyntaxError) as error:
            raise _unreadable(path, error) from error


def image_folder(path: str, config: DataConfig, input_shape: Shape | None) -> Source:
    """Find the images under `path`, which holds one folder per class, or train/ and val/ (and test/) with such folders.

    A relative path is looked up in `config.data_dir`, where that is given.

    With train/ and val/ alone, val/ is the test set and validation images are cut out of train/. With test/ too, each
    folder holds the images that its name says. Without train/, 20% of each class become test images, the same for every
    seed.

    Raises:
        DataError: no folder, no images, one class only, or a file that is no image.
    """
    root = Path(config.data_dir).expanduser() / Path(path).expanduser()
    if not path or not root.is_dir():
        raise DataError(f"{path!r} is not a folder; imagefolder: needs {LAYOUT}")
    if not (root / "train").is_dir():
        whole = _split(root, _classes(root), config, input_shape)
        order = class_mixed_order(whole.labels, TEST_SEED)
        aside = max(1, round(TEST_SHARE * len(order)))
        return _folder_source(whole.subset(order[aside:]), whole.subset(order[:aside]), None, len(_classes(root)))
    classes = _classes(root / "train")
    train = _split(root / "train", classes, config, input_shape)
    given = {
        name: _split(root / name, classes, config, (len(train.mean), *train.size))
        for name in ("val", "test")
        if (root / name).is_dir()
    }
    if not given:
        raise DataError(f"{root} holds train/ but neither val/ nor test/; imagefolder: needs {LAYOUT}")
    test = given["test"] if "test" in given else given["val"]
    return _folder_source(train, test, given["val"] if len(given) == 2 else None, len(classes))


def dataset_pair(name: str, made: Any, config: DataConfig, input_shape: Shape | None) -> Source:
    """Wrap (train, test), two map-style datasets of (image, class) that a user's function has returned.

    An image is a PIL image or a tensor (C, H, W); uint8 is normalised, float is used unchanged. A dataset may also be a
    pair of tensors, images (N, C, H, W) and labels (N,).

    Args:
        name: of the function, for messages and the digest.
        made: the value that the factory returned.

    Raises:
        DataError: it returned something else.
    """
    if not (isinstance(made, tuple) and len(made) == 2 and all(hasattr(dataset, "__getitem__") for dataset in made)):
        raise DataError(
            f"{name} returned {type(made).__name__}; it must return runners.data.loading.ImageData or a tuple "
            "(train_dataset, test_dataset)"
        )
    train, test = (_wrapped(dataset, f"{name} part {part}", config, input_shape) for part, dataset in enumerate(made))
    channels = len(train.mean)
    return Source(train, test, int(train.labels.max()) + 1, (channels, *train.size))


def _folder_source(train: LazySplit, test: LazySplit, val: LazySplit | None, classes: int) -> Source:
    return Source(train, test, classes, (len(train.mean), *train.size), val)


def _classes(folder: Path) -> list[str]:
    """List the class folders.

    Raises:
        DataError: fewer than two.
    """
    found = sorted(_class_folders(folder))
    if not found:
        raise DataError(f"{folder} holds no class folders; imagefolder: needs {LAYOUT}")
    if len(found) == 1:
        raise DataError(f"{folder} holds one class, {found[0]!r}; at least 2 class folders are needed to tell apart")
    return found


def _class_folders(folder: Path) -> set[str]:
    """Return the names of the folders in `folder`, without hidden ones such as .ipynb_checkpoints."""
    return {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _split(folder: Path, classes: Sequence[str], config: DataConfig, input_shape: Shape | None) -> LazySplit:
    """List the images of every class folder, read the header of each file, and choose the size.

    The files of a class are in the order of their paths; `torchvision.datasets.folder.make_dataset` would order nested
    folders differently and follow links.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    unknown = _class_folders(folder) - set(classes)
    if unknown:
        raise DataError(f"{folder} holds class {min(unknown)!r}, which train/ lacks; add it there or remove it")
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in IMG_EXTENSIONS and file.is_file()
    ]
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if not files or (folder.name not in ("val", "test") and 0 in counts):
        empty = folder if not files else folder / classes[counts.index(0)]
        raise DataError(f"{empty} holds no images ({', '.join(IMG_EXTENSIONS)}); fill it or remove it")
    sides = [_shorter_side(file) for file, _ in files]
    natural = int(median(sides[:: max(1, len(sides) // SIZED_IMAGES)])) // SIDE_STEP * SIDE_STEP
    side = min(max(natural, SMALLEST_SIDE), LARGEST_SIDE)
    channels, *size = shape_for(config, input_shape, (3, side, side))
    if channels not in (1, 3):
        raise DataError(f"the network reads {channels} channels; images from files have 1 or 3")
    return LazySplit(
        source=ImageFiles(tuple((str(file), label) for file, label in files)),
        indices=torch.arange(len(files)),
        labels=labels,
        mean=MEAN if channels == 3 else (sum(MEAN) / 3,),
        std=STD if channels == 3 else (sum(STD) / 3,),
        size=(size[0], size[1]),
        augmentation=Augmentation(flip=True, crop=True, min_crop_area=config.min_crop_area),
        name=repr([(file.relative_to(folder).as_posix(), file.stat().st_size) for file, _ in files]),
    )


def _shorter_side(file: Path) -> int:
    """Return the shorter side of an image in pixels, from the header of its file.

    Raises:
        DataError: the file has no header of an image.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            return min(image.size)
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(str(file), error) from error


def _unreadable(path: str, error: Exception) -> DataError:
    reason = str(error).replace(repr(path), "file").strip() or type(error).__name__
    return DataError(f"{path} cannot be read as an image ({reason}); repair or remove it")


def _wrapped(dataset: Any, name: str, config: DataConfig, input_shape: Shape | None) -> TensorSplit | LazySplit:
    """Return a split of a dataset of (image, class), or of a pair of tensors."""
    if isinstance(dataset, tuple | list) and len(dataset) == 2 and all(isinstance(part, Tensor) for part in dataset):
        return _from_tensors(dataset[0], dataset[1], name, config, input_shape)
    labels = _labels(dataset, name)
    first = dataset[0][0]
    natural = first.shape if isinstance(first, Tensor) else (3, first.size[1], first.size[0])
    channels, height, width = shape_for(config, input_shape, (natural[0], natural[1], natural[2]))
    unchanged = isinstance(first, Tensor) and first.is_floating_point()
    if isinstance(first, Tensor) and first.shape[0] != channels:
        raise DataError(f"{name} gives images of {first.shape[0]} channels, the network reads {channels}")
    mean, std = (MEAN, STD) if channels == 3 and not unchanged else ((0.0,) * channels, (1.0,) * channels)
    augmentation = Augmentation(shift=0, flip=True, crop=True, min_crop_area=config.min_crop_area)
    source: ImageSource = dataset
    return LazySplit(
        source, torch.arange(len(labels)), labels, mean, std, (height, width), augmentation, f"{name} {labels.tolist()}"
    )


def _from_tensors(
    images: Tensor, labels: Tensor, name: str, config: DataConfig, input_shape: Shape | None
) -> TensorSplit:
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{name} has images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)}; they must be "
            "(N, C, H, W) and (N,)"
        )
    channels, height, width = shape_for(config, input_shape, (images.shape[1], images.shape[2], images.shape[3]))
    images = with_channels(images, channels)
    byte = images.dtype == torch.uint8
    mean, std = (0.5 if byte else 0.0,) * channels, (0.25 if byte else 1.0,) * channels
    return TensorSplit(images, labels.to(torch.int64), mean, std, (height, width))


def _labels(dataset: Any, name: str) -> Tensor:
    """Return the class of every image of a dataset, from its `targets` or `labels`, else by reading all of it."""
    for attribute in ("targets", "labels"):
        if hasattr(dataset, attribute):
            return torch.as_tensor(getattr(dataset, attribute), dtype=torch.int64)
    try:
        return torch.tensor([int(dataset[index][1]) for index in range(len(dataset))], dtype=torch.int64)
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{name} does not give (image, class) pairs ({error}); see runners.data.folders.dataset_pair"
        ) from error
