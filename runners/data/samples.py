"""A sample of a user's dataset: its image and its class, in whatever form datasets give them.

What is plain is taken as it is meant: a dict, more than two parts, channels last, grey, 16 bits, a class as a tensor or
as one-hot. Anything else is an error that names the sample.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from runners.data.splits import DataError

IMAGE_KEYS = ("image", "img", "images", "pixel_values", "x", "input", "inputs")
LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class", "fine_label")
EXPECTED = "it must be (image, class), or a dict with 'image' and 'label'"
COLOURS = (1, 3, 4)  # usual numbers of channels; four with opacity
_SHORT = 60  # characters of a value in a message


@dataclass(frozen=True, eq=False)
class UserImages:
    """The images of a user's dataset.

    Attributes:
        dataset: map-style, of samples.
        name: of the dataset, for messages.
        channels_last: whether arrays have the shape (H, W, C), not (C, H, W).
        byte: whether images are bytes (PIL images, or arrays of whole numbers); else arrays of floats.
    """

    dataset: Any
    name: str
    channels_last: bool = False
    byte: bool = True

    def __copy__(self) -> "UserImages":
        """Return the images of a copy of the dataset, which opens a file of its own where that is opened when read."""
        return replace(self, dataset=_copied(self.dataset))

    def __getitem__(self, index: int) -> Any:
        """Return the image of a sample: a PIL image, or a tensor (C, H, W) of uint8 or float32.

        Raises:
            DataError: the sample cannot be read, or holds no image of this kind; the message names it.
        """
        return self.image(index, self.parts(index)[0])

    def parts(self, index: int) -> tuple[Any, Any]:
        """Return the image and the class of a sample as the dataset gives them; raises DataError."""
        try:
            sample = self.dataset[index]
        except Exception as error:  # of whatever kind the user's code raises
            raise DataError(
                f"{self.place(index)} cannot be read ({type(error).__name__}: {error}); {EXPECTED}, so repair it "
                "or leave it out"
            ) from error
        return _image_and_class(sample, self.place(index))

    def image(self, index: int, value: Any) -> Any:
        """Return the image that a sample has given; see `__getitem__`."""
        image = as_image(value, self.channels_last, self.place(index))
        if self.byte == (isinstance(image, Tensor) and image.is_floating_point()):
            kinds = ("bytes", "floats") if self.byte else ("floats", "bytes")
            raise DataError(
                f"{self.place(index)} is an image of {kinds[1]}, others of {kinds[0]}; give all in one form"
            )
        return image

    def label(self, index: int, value: Any) -> int:
        """Return the class that a sample has given; raises DataError."""
        return as_label(value, self.place(index))

    def place(self, index: int) -> str:
        """Return how messages name a sample."""
        return f"{self.name} sample {index}"


class UserPairs(UserImages):
    """The images of a user's dataset with their targets, which are no classes: masks, maps, vectors or numbers.

    Both are of one reading, so that a random change of the dataset acts on both.
    """

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        """Return the image and the target of a sample; raises DataError."""
        image, target = self.parts(index)
        return self.image(index, image), as_target(target, self.place(index))


def as_target(value: Any, place: str) -> Tensor:
    """Return a target as a tensor: whole numbers as int64, others as float32; a mask may be a PIL image.

    Raises:
        DataError: it is no array of numbers, or holds some that are not finite.
    """
    if isinstance(value, Image.Image):
        value = np.asarray(value)
    try:
        target = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value))
    except (TypeError, ValueError):
        target = torch.empty(0)
    if not target.numel() or target.is_complex():
        raise DataError(f"{place} has target {described(value)}; it must be a number, an array or a tensor")
    if not target.is_floating_point():
        return target.to(torch.int64)
    wrong = int((~target.isfinite()).sum())
    if wrong:
        raise DataError(f"{place} has {wrong} of {target.numel()} target values that are NaN or infinite")
    return target.to(torch.float32)


def _copied(dataset: Any) -> Any:
    if isinstance(dataset, Subset):
        return Subset(_copied(dataset.dataset), dataset.indices)
    try:
        return copy.copy(dataset)
    except Exception:  # of whatever kind the user's code raises
        return dataset


def has_channels_last(value: Any) -> bool:
    """Tell whether an image is an array of shape (H, W, C), not (C, H, W).

    Images are mostly square and have 1, 3 or 4 channels. Where that decides nothing, an array has its channels last,
    and a tensor first.
    """
    if not isinstance(value, Tensor | np.ndarray) or value.ndim < 3:
        return False
    first, middle, last = value.shape[-3:]
    square = (first == middle) - (middle == last)
    usual = (last in COLOURS) - (first in COLOURS)
    return (square or usual or (1 if isinstance(value, np.ndarray) and last < first else -1)) > 0


def as_image(value: Any, channels_last: bool, place: str) -> Any:
    """Return a PIL image, or a tensor (C, H, W) of uint8 or float32.

    Args:
        place: names the sample in an error.

    Raises:
        DataError: the value is no image, or has pixels that are no numbers.
    """
    if isinstance(value, Image.Image):
        return of_eight_bits(value)
    if not isinstance(value, Tensor | np.ndarray):
        raise DataError(f"{place} has {described(value)} for an image; it must be a PIL image, an array or a tensor")
    pixels = as_pixels(value, place)
    if pixels.ndim == 4 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim == 2:
        return pixels[None]
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise DataError(
            f"{place} has an image of shape {tuple(pixels.shape)}; it must be (C, H, W), (H, W, C) or (H, W)"
        )
    return pixels.permute(2, 0, 1).contiguous() if channels_last else pixels


def as_pixels(value: Any, place: str) -> Tensor:
    """Return an array or tensor of any shape as uint8 or float32; raises DataError for values that are no pixels."""
    tensor = _as_tensor(value, place)
    if tensor.is_floating_point():
        pixels = tensor.to(torch.float32)
        wrong = int((~pixels.isfinite()).sum())
        if wrong:
            raise DataError(
                f"{place} has {wrong} of {pixels.numel()} pixels that are NaN or infinite; all must be finite"
            )
        return pixels
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8) * 255
    if tensor.dtype != torch.uint8 and tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) <= 255:
        raise DataError(
            f"{place} has pixels from {int(tensor.min())} to {int(tensor.max())} of {tensor.dtype}; give uint8 from 0 "
            "to 255, or floats"
        )
    return tensor.to(torch.uint8)


def _as_tensor(value: Any, place: str) -> Tensor:
    """Return an array or tensor of whole or real numbers as a tensor."""
    dtype = str(value.dtype)
    if dtype.endswith("uint16"):
        value = np.asarray(value).astype(np.int32) >> 8
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value, order="C"))
    if isinstance(value, Tensor) and not (value.is_complex() or value.is_quantized):
        return value.detach().cpu()
    raise DataError(f"{place} has pixels of {dtype}; give uint8 from 0 to 255, or floats")


def as_label(value: Any, place: str) -> int:
    """Return a class as a whole number from 0, of a number, an array of one, or a one-hot array.

    Raises:
        DataError: it is nothing of these.
    """
    if isinstance(value, Tensor | np.ndarray | np.generic):
        numbers = torch.as_tensor(value).flatten() if not isinstance(value, np.generic) else None
        if numbers is not None and numbers.numel() > 1:
            one_hot = bool(((numbers == 0) | (numbers == 1)).all()) and int(numbers.sum()) == 1
            value = int(numbers.argmax()) if one_hot else value
        elif numbers is None or numbers.numel() == 1:
            value = value.item()
    if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()):
        if 0 <= value < 2**63:
            return int(value)
    raise DataError(f"{place} has class {described(value)}; it must be a whole number from 0")


def described(value: Any) -> str:
    """Return a few words for a value of an unexpected kind."""
    if isinstance(value, Tensor | np.ndarray):
        return f"an array of shape {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(repr, value))[:_SHORT] or 'no keys'}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(part).__name__ for part in value)[:_SHORT]})"
    return (
        repr(value)
        if isinstance(value, str | int | float | None) and len(repr(value)) < _SHORT
        else f"a {type(value).__name__}"
    )


def _image_and_class(sample: Any, place: str) -> tuple[Any, Any]:
    """Return image and class of a sample; further parts are left out."""
    if isinstance(sample, Mapping):
        image = _value(sample, IMAGE_KEYS, [key for key, value in sample.items() if _is_image(value)])
        label = _value(sample, LABEL_KEYS, [key for key, value in sample.items() if isinstance(value, int)])
        if image is not None and label is not None:
            return sample[image], sample[label]
    elif isinstance(sample, Sequence) and not isinstance(sample, str) and len(sample) >= 2 and _is_image(sample[0]):
        return sample[0], sample[1]
    raise DataError(f"{place} is {described(sample)}; {EXPECTED}")


def _value(sample: Mapping[Any, Any], names: Sequence[str], alike: Sequence[Any]) -> Any:
    """Return the key of the first name, else the only key with a value of the kind; None where there is none."""
    found = [name for name in names if name in sample] or (alike if len(alike) == 1 else [])
    return found[0] if found else None


def _is_image(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, Tensor | np.ndarray) and value.ndim >= 2)


def of_eight_bits(image: Image.Image) -> Image.Image:
    """Return an image whose values go to 255: Pillow would cut off those of 16 bits, not scale them."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    deep = image.mode.startswith("I;16") or values.max(initial=0) > 255
    return Image.fromarray((values >> 8 if deep else values).clip(0, 255).astype(np.uint8))
