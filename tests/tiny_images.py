"""Small splits and folders of images for the tests of several modules."""

from pathlib import Path

import torch
from PIL import Image

from runners.data.splits import Split, TensorSplit

CPU = torch.device("cpu")


def small_split(count: int = 12, **settings) -> TensorSplit:
    """Images of 3x4x4 whose values count up, of three classes in turn."""
    images = torch.arange(count * 3 * 4 * 4).remainder(256).to(torch.uint8).reshape(count, 3, 4, 4)
    return TensorSplit(images, torch.arange(count) % 3, (0.5,) * 3, (0.25,) * 3, (4, 4), **settings)


def write_images(folder: Path, classes: dict[str, int], side: int = 8) -> Path:
    """Write class name -> number of images; red tells the class, green the number of the image."""
    for value, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (side, side), (80 * value, index, 0)).save(folder / name / f"{index}.png")
    return folder


def collected(split: Split, **settings) -> torch.Tensor:
    """Return all images of a split, in the order of its batches."""
    return torch.cat([images for images, _ in split.batches(5, device=CPU, **settings)])
