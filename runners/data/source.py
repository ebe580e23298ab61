"""Source: a dataset before validation images are cut out of it, and the preparation that all datasets share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from runners.config import DataConfig
from runners.data.splits import DataError, Split

Shape = tuple[int, int, int]  # (channels, height, width) of one image
# Mean and standard deviation of ImageNet per colour, in [0, 1], which networks with published weights expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SMALLEST_SIDE, LARGEST_SIDE, SIDE_STEP = 32, 224, 32
TEST_SEED = 20  # fixed, because the test images must not depend on the seed of the run


@dataclass(frozen=True, eq=False)
class Source:
    """A dataset before validation images are cut out of it; the entries of DATASETS return one.

    Attributes:
        train: all images that a search may use, in any order.
        test: the same images for every seed.
        val: validation images that come with the dataset; None where they are cut out of `train`.
        plain: the images of `train` as validation reads them; None where `train` is read alike every time.
    """

    train: Split
    test: Split
    num_classes: int
    input_shape: tuple[int, int, int]
    val: Split | None = None
    plain: Split | None = None


def class_mixed_order(labels: Tensor, seed: int) -> Tensor:
    """Return a seeded order of the images in which every contiguous part holds the classes in the overall proportions.

    Args:
        labels: of shape (N,), int64; targets that are no classes leave the order to the seed alone.

    Returns:
        A permutation of the indices, of shape (N,).
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if labels.ndim != 1 or labels.is_floating_point() or (len(labels) and int(labels.min()) < 0):
        return shuffled
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels) if len(labels) else torch.zeros(0, dtype=torch.int64)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - starts[labels[by_class]]
    place = torch.empty(len(labels), dtype=torch.float64)
    place[by_class] = (rank.to(torch.float64) + 0.5) / counts[labels[by_class]]
    return shuffled[torch.argsort(place[shuffled], stable=True)]


def shape_for(config: DataConfig, wanted: Shape | None, natural: Shape) -> Shape:
    """Return the shape of an image in a batch: `wanted`, else `natural`, with the configured size where one is set."""
    channels, height, width = wanted or natural
    if config.image_size:
        height = width = config.image_size
    return channels, height, width


def colour_scale(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, in [0, 1], by which images of bytes are normalised."""
    if channels == 3:
        return MEAN, STD
    return ((sum(MEAN) / 3,), (sum(STD) / 3,)) if channels == 1 else ((0.5,) * channels, (0.25,) * channels)


def natural_side(shorter: int) -> int:
    """Return the side of square images for files whose shorter side is mostly `shorter` pixels."""
    return min(max(shorter // SIDE_STEP * SIDE_STEP, SMALLEST_SIDE), LARGEST_SIDE)


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Return images of shape (N, C, H, W) with `channels` channels: grey is repeated, colours are averaged.

    Raises:
        DataError: the numbers of channels differ, and neither is 1.
    """
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.repeat(1, channels, 1, 1)
    if channels == 1:
        grey = images.to(torch.float32).mean(1, keepdim=True)
        return grey.round().to(torch.uint8) if images.dtype == torch.uint8 else grey
    raise DataError(
        f"the network reads {channels} channels, the images have {images.shape[1]}; take a network that reads 1, 3 or "
        f"{images.shape[1]} channels"
    )
