"""Networks and image sets of the studies, small enough for processors.

With this folder on the path they are named `small_cells:slim_vgg16_bn` and `small_cells:glyphs_2000`, that is a named
image set and the number of its training images that are used.
"""

import dataclasses
from dataclasses import dataclass

from torch import nn

from runners.config import DataConfig
from runners.data.loading import DATASETS, ImageData, cut
from runners.data.source import TEST_SEED, class_mixed_order

# Uneven, as the widths of a network are after somebody has tuned it: neither constant in a stage nor rising throughout.
UNEVEN_VGG16 = (20, 28, "M", 56, 40, "M", 96, 72, 80, "M", 160, 104, 128, "M", 88, 144, 64)


def slim_vgg16_bn(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build VGG-16 with BatchNorm, one linear head and narrow, uneven widths."""
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for step in UNEVEN_VGG16:
        if isinstance(step, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, step, 3, padding=1, bias=False), nn.BatchNorm2d(step), nn.ReLU()]
        channels = step
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


@dataclass(frozen=True)
class Subset:
    """A part of the training images of a named set, the same for every seed, and all of its test images."""

    name: str
    images: int

    def __call__(self, config: DataConfig, seed: int) -> ImageData:
        """Return the images, of which `seed` sets some apart for validation."""
        source = DATASETS[self.name](config, None)
        chosen = class_mixed_order(source.train.labels, TEST_SEED)[: self.images]
        return cut(dataclasses.replace(source, train=source.train.subset(chosen)), config, seed)


def __getattr__(name: str) -> Subset:
    """Return the factory called SET_IMAGES, such as `glyphs_2000`."""
    images, _, count = name.rpartition("_")
    if images not in DATASETS or not count.isdigit():
        known = ", ".join(DATASETS)
        raise AttributeError(f"{name!r} is not in {__name__}; write one of {known} and a number, as in digits_500")
    return Subset(images, int(count))
