"""DATASETS: name -> train, validation and test images, and the training images that methods may look at.

Validation images are cut out of the training images by the seed of the run. The test images are the same for every
seed and are read once, at the end of a search.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from runners.cache import digest_of
from runners.config import DataConfig
from runners.data.augmentation import named_augmentation
from runners.data.reading import LazySplit
from runners.data.source import Shape, Source, class_mixed_order
from runners.data.splits import DataError, Split, TensorSplit
from spaces.errors import SlimfrontError
from spaces.registry import USER_ERRORS, Registry, import_code

DATASETS = Registry(
    "dataset",
    {
        "digits": "runners.data.builtin:digits",
        "cluttered_digits": "runners.data.builtin:cluttered_digits",
        "coloured_digits": "runners.data.builtin:coloured_digits",
        "glyphs": "runners.data.builtin:glyphs",
        "cifar10": "runners.data.builtin:cifar10",
        "cifar100": "runners.data.builtin:cifar100",
        "mnist": "runners.data.builtin:mnist",
    },
)
PROBE_IMAGES = 512
CALIBRATION_IMAGES = 2048
# Fields of DataConfig that leave the images as they are; the digests of the splits cover the augmentation.
NOT_CONTENT = ("data_dir", "augment", "workers")


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image dataset, split for a search.

    Attributes:
        train: images on which networks are trained.
        val: images on which the search compares networks.
        test: images that are read once, at the end.
        probe: training images, never augmented, on which methods compare cuts.
        calibration: other training images, never augmented, from which methods gather statistics.
        input_shape: (channels, height, width) of one image in a batch.
        fingerprint: hash of everything that determines the content of train, val and test.
    """

    name: str
    train: Split
    val: Split
    test: Split
    probe: Split
    calibration: Split
    num_classes: int
    input_shape: Shape
    fingerprint: str


def load_data(config: DataConfig, seed: int, input_shape: Shape | None = None, *, classifies: bool = True) -> ImageData:
    """Load the images that `config` names and split them by `seed`.

    Args:
        config: names an entry of DATASETS, "imagefolder:PATH" or "package.module:factory".
        seed: determines which training images become validation images.
        input_shape: shape of an image for the network; None takes that of the dataset. `config.image_size` wins.
        classifies: whether the images of a function have classes; else they have targets of any shape.

    Raises:
        DataError: the images are missing, unreadable or too few.
        UnknownNameError: no such dataset; the message lists the nearest names.
    """
    kind, _, rest = config.name.partition(":")
    if kind == "imagefolder":
        from runners.data.folders import image_folder

        source = image_folder(rest, config, input_shape)
    elif rest:
        from runners.data.user_sets import check_parts, user_source

        made = _called(_load_factory(config.name), config, seed)
        if isinstance(made, ImageData):
            parts = {"train": made.train, "val": made.val, "test": made.test}
            check_parts(config.name, parts, made.num_classes, made.input_shape)
            return made
        source = user_source(config.name, made, config, input_shape, classifies=classifies)
    else:
        source = DATASETS[config.name](config, input_shape)
    return cut(_augmented(_scaled(source, config), config, classifies), config, seed)


def cut(source: Source, config: DataConfig, seed: int) -> ImageData:
    """Cut validation, probe and calibration images out of the training images of a source."""
    order = class_mixed_order(source.train.labels, seed)
    val, plain = source.val, source.plain or source.train
    if val is None:
        if len(order) < 2:
            raise DataError(f"{config.name} has {len(order)} training images; at least 2 are needed to set some apart")
        aside = min(len(order) - 1, max(1, round(config.val_share * len(order))))
        held, order = _keeping_classes(source.train.labels, order[:aside], order[aside:])
        val = plain.subset(held)
    train, plain = source.train.subset(order), plain.subset(order)
    probe = min(PROBE_IMAGES, max(1, len(train) // 3))
    calibration = min(CALIBRATION_IMAGES, max(1, len(train) - probe))
    # The first images calibrate and re-estimate BatchNorm, the last are probe images, so that the two do not overlap.
    positions = torch.arange(len(train))
    return ImageData(
        name=config.name,
        train=train,
        val=val,
        test=source.test,
        probe=plain.subset(positions[-probe:]),
        calibration=plain.subset(positions[:calibration]),
        num_classes=source.num_classes,
        input_shape=source.input_shape,
        fingerprint=_fingerprint(config, seed, (train, val, source.test)),
    )


def _keeping_classes(labels: Tensor, held: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of validation and of training images, after those of classes that training lacks have moved.

    A class with a single image must be trained on.
    """
    if labels.ndim != 1 or labels.is_floating_point():
        return held, rest
    lacking = ~torch.isin(labels[held], labels[rest])
    if lacking.all():
        return held, rest
    return held[~lacking], torch.cat([rest, held[lacking]])


def _augmented(source: Source, config: DataConfig, classifies: bool) -> Source:
    """Return the source with the random changes of `config.augment`.

    Raises:
        DataError: the images cannot be changed so.
    """
    names, train = config.augmentations, source.train
    if names is None:
        return source
    if names and not classifies:
        raise DataError(
            f"--augment {config.augment} changes images alone, and their targets are no classes; change both in the "
            "dataset"
        )
    if not isinstance(train, TensorSplit | LazySplit):
        raise DataError(f"images of a {type(train).__name__} augment themselves; take --augment auto")
    channels = source.input_shape[0]
    if "randaugment" in names and not (train.byte and channels in (1, 3)):
        kind = f"{channels} channels" if train.byte else "floats"
        raise DataError(
            f"{config.name} gives images of {kind}, and RandAugment changes bytes of 1 or 3 channels; give these, "
            "or leave randaugment out of --augment"
        )
    own = replace(train.augmentation, padding_mode=config.padding_mode, min_crop_area=config.min_crop_area)
    augmentation = named_augmentation(names, own, source.input_shape[1:], source.num_classes)
    return replace(source, train=train.with_augmentation(augmentation))


def _scaled(source: Source, config: DataConfig) -> Source:
    """Return the source with its pixel values scaled by `config.scale`."""
    if config.scale == "set":
        return source
    train, test = _halved(source.train), _halved(source.test)
    val, plain = (None if split is None else _halved(split) for split in (source.val, source.plain))
    return replace(source, train=train, test=test, val=val, plain=plain)


def _halved(split: Split) -> Split:
    if not isinstance(split, TensorSplit | LazySplit):
        raise DataError(f"images of a {type(split).__name__} scale themselves; take scale 'set'")
    half = (0.5,) * len(split.mean)
    return replace(split, mean=half, std=half)


def _fingerprint(config: DataConfig, seed: int, splits: tuple[Split, ...]) -> str:
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_CONTENT}
    return digest_of(settings | {"seed": seed, "data_dir": "", "splits": [split.digest() for split in splits]})


def _called(factory: Callable[[DataConfig, int], Any], config: DataConfig, seed: int) -> Any:
    try:
        return factory(config, seed)
    except SlimfrontError:
        raise
    except USER_ERRORS as error:
        raise DataError(
            f"data {config.name!r} raised {type(error).__name__}: {error}; it must return (train, test) for "
            "(DataConfig, seed); --debug shows where"
        ) from error


def _load_factory(text: str) -> Callable[[DataConfig, int], Any]:
    try:
        factory = import_code(text)
    except ImportError as error:
        raise DataError(
            f"data {text!r} cannot be loaded ({error}); give a name ({', '.join(DATASETS)}), imagefolder:PATH, or "
            "package.module:factory importable from the current folder"
        ) from error
    if not callable(factory):
        raise DataError(f"data {text!r} is a {type(factory).__name__}; it must be a function of (DataConfig, seed)")
    return factory  # type: ignore[no-any-return]
