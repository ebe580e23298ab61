"""Augmentation: random changes of training images, chosen by name.

Whole batches in memory are shifted and flipped at once; the other changes are torchvision's (transforms v2), image by
image. Mixing acts on a batch that is normalised and ready for the network, and makes its labels shares of classes.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from runners.data.seeding import seeded

SHIFTED_SHARE = 8  # a shift is at most the shorter side over this: 4 pixels of 32, as is usual for CIFAR
# Those of torchvision's reference training.
ERASING_PROBABILITY = 0.1
MIXING = {"mixup": 0.2, "cutmix": 1.0}  # parameters of the distribution of shares
# Digests have always named these, so they do where they are off; a cached dense network keeps its key by that.
_ALWAYS_NAMED = ("shift", "flip", "crop", "padding_mode", "min_crop_area")


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Attributes:
        shift: largest shift in pixels, vertically and horizontally.
        flip: whether images are flipped horizontally with probability 1/2.
        crop: whether a random crop is scaled to full size.
        padding_mode: what fills the border of a shifted image, "reflect" (the image) or "constant" (black).
        min_crop_area: smallest share of the area that a crop keeps.
        randaugment: whether images are changed by two random operations of RandAugment; images of bytes only.
        erasing: whether a rectangle is erased, in a tenth of the images.
        mixing: of "mixup" and "cutmix", those of which one is chosen at random for every batch.
        classes: number of classes; needed for mixing.
    """

    shift: int = 0
    flip: bool = False
    crop: bool = False
    padding_mode: Literal["reflect", "constant"] = "reflect"
    min_crop_area: float = 0.35
    randaugment: bool = False
    erasing: bool = False
    mixing: tuple[str, ...] = ()
    classes: int = 0

    def __repr__(self) -> str:
        """Write the changes for a digest; most fields are left out where they have their default."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        written = [
            f"{name}={value!r}" for name, (value, usual) in values.items() if name in _ALWAYS_NAMED or value != usual
        ]
        return f"Augmentation({', '.join(written)})"

    def __call__(self, images: Tensor, generator: torch.Generator, mean: Sequence[float] = ()) -> Tensor:
        """Return images of shape (B, C, H, W), each changed independently, all but mixed.

        Args:
            mean: of the values in [0, 1] per channel, with which a rectangle is erased.
        """
        if self.shift:
            images = _shifted(images, self.shift, generator, self.padding_mode)
        if self.flip:
            flipped = torch.rand(len(images), generator=generator).to(images.device) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        if self.crop or self.randaugment or self.erasing:
            height, width = images.shape[-2:]
            change = _composed(
                [*self._cropping((height, width)), *self._later(mean, byte=not images.is_floating_point())]
            )
            with _seeded_by(generator):
                images = torch.stack([change(image) for image in images])
        return images

    def per_image(self, size: tuple[int, int], mean: Sequence[float], *, byte: bool) -> Callable[[Any], Tensor]:
        """Return a function of one PIL image or tensor (C, H, W) to a changed tensor, which draws from torch's RNG.

        Args:
            size: height and width of the result, which an image that is not cropped must have already.
            mean: of the values in [0, 1] per channel, with which a rectangle is erased.
            byte: whether tensors are uint8.
        """
        from torchvision.transforms import v2

        steps = self._cropping(size)
        if self.shift:
            steps.append(v2.RandomCrop(size, self.shift, padding_mode=self.padding_mode))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        return _composed([*steps, *self._later(mean, byte=byte)])

    def mix(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return mixed images of a batch, and the shares of the classes in each, float32 of shape (B, classes)."""
        with _seeded_by(generator):
            choice = int(torch.randint(len(self.mixing), ()))
            mixed: tuple[Tensor, Tensor] = self._mixers[choice](images, labels)
            return mixed

    @cached_property
    def _mixers(self) -> list[Any]:
        from torchvision.transforms import v2

        makers: dict[str, Any] = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
        return [makers[name](alpha=MIXING[name], num_classes=self.classes) for name in self.mixing]

    def _cropping(self, size: tuple[int, int]) -> list[Any]:
        from torchvision.transforms import v2

        return [v2.RandomResizedCrop(size, scale=(self.min_crop_area, 1.0), antialias=True)] if self.crop else []

    def _later(self, mean: Sequence[float], *, byte: bool) -> list[Any]:
        """Return the changes that come after crop and flip, and the conversion of a PIL image to a tensor."""
        from torchvision.transforms import v2

        steps: list[Any] = [v2.RandAugment()] if self.randaugment else []
        steps.append(v2.PILToTensor())
        if self.erasing:
            fill: Any = [value * (255 if byte else 1) for value in mean]
            steps.append(v2.RandomErasing(ERASING_PROBABILITY, value=fill))
        return steps


def named_augmentation(names: Sequence[str], own: Augmentation, size: tuple[int, int], classes: int) -> Augmentation:
    """Return the augmentation of these names.

    Args:
        own: that of the dataset, of which shift, padding mode and least area of a crop are taken.
        size: height and width of an image.
    """
    mixing = tuple(name for name in MIXING if name in names)
    return Augmentation(
        shift=(own.shift or max(1, min(size) // SHIFTED_SHARE)) if "shift" in names else 0,
        flip="flip" in names,
        crop="crop" in names,
        padding_mode=own.padding_mode,
        min_crop_area=own.min_crop_area,
        randaugment="randaugment" in names,
        erasing="erasing" in names,
        mixing=mixing,
        classes=classes if mixing else 0,
    )


def _composed(steps: Sequence[Any]) -> Callable[[Any], Tensor]:
    from torchvision.transforms import v2

    composed: Callable[[Any], Tensor] = v2.Compose(steps)
    return composed


def _seeded_by(generator: torch.Generator) -> AbstractContextManager[None]:
    """Seed the global generators, from which torchvision draws, by a number of `generator` inside the block."""
    return seeded(int(torch.randint(2**62, (), generator=generator)))


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
