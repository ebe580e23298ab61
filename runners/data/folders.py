"""Images read from a folder of files, one folder per class."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from runners.config import DataConfig
from runners.data.augmentation import Augmentation
from runners.data.folder_index import ImageFiles, index_folder, sample_digest
from runners.data.reading import Decoder, ImageReader, LazySplit
from runners.data.source import TEST_SEED, Shape, Source, class_mixed_order, colour_scale, natural_side, shape_for
from runners.data.splits import DataError

TEST_SHARE = 0.2  # of the images in a folder without a test set of its own
LAYOUT = "PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or PATH/CLASS/*.jpg"


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
    """Make the split of all images in the class folders, and choose the size."""
    unknown = _class_folders(folder) - set(classes)
    if unknown:
        raise DataError(f"{folder} holds class {min(unknown)!r}, which train/ lacks; add it there or remove it")
    index = index_folder(folder, classes)
    counts = torch.bincount(index.labels, minlength=len(classes)).tolist()
    if not len(index) or (folder.name not in ("val", "test") and 0 in counts):
        empty = folder if not len(index) else folder / classes[counts.index(0)]
        raise DataError(f"{empty} holds no images ({', '.join(IMG_EXTENSIONS)}); fill it or remove it")
    side = natural_side(index.side)
    channels, height, width = shape_for(config, input_shape, (3, side, side))
    if channels not in (1, 3):
        raise DataError(f"the network reads {channels} channels; images from files have 1 or 3")
    mean, std = colour_scale(channels)
    augmentation = Augmentation(flip=True, crop=True, min_crop_area=config.min_crop_area)
    source = ImageFiles(folder, tuple(classes), index.content, index)
    return LazySplit(
        reader=ImageReader(Decoder(source, mean, (height, width), augmentation), config.workers),
        indices=torch.arange(len(index)),
        labels=index.labels,
        mean=mean,
        std=std,
        name=f"{index.content} {sample_digest(index)}",
    )
