"""Hard images of type: each shows one letter, in upper or lower case, in colour over a part of a photograph.

Fonts and photographs come with matplotlib and scikit-learn. Size, slant, shear, position, colour, opacity, blur and
noise are random. Training and test images share no family of fonts and no part of a photograph, so validation images,
which are cut out of the training images, are easier than test images: after 20 epochs at a learning rate of 0.1 (one
seed), ResNet-20 classifies 77.8% of the validation images and 69.2% of the test images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from runners.data.clutter import painted
from runners.data.splits import DataError

LETTERS = "ABCDEFGHKMNPRSTUWXYZ"  # without those that are alike in some font: I, J and L; O and Q; U and V
TRAIN_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("cmr10", "cmb10", "cmti10", "cmmi10"),
)
TEST_FONTS = (
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("cmss10", "cmtt10"),
)
SIDE = 64  # at which everything is drawn
EM = 48  # height of a line of type in a mask of SIDE x SIDE, in pixels; no letter of any font is wider than SIDE
TRAIN_SHARE = 2 / 3  # of the width of every photograph, from the right; test images take the rest
CHUNK = 100  # images drawn at once; with 500, which leave the processor's cache, it takes longer


@dataclass(frozen=True)
class Difficulty:
    """Difficulty of the images.

    Attributes:
        smallest, largest: height of a line of type as a share of the image's side; a capital has about 0.7 of it.
        stretch: largest factor by which a letter is wider or narrower than its font has it.
        slant: largest rotation in degrees, both ways.
        shear: largest shift of a letter's top against its middle, as a share of half its height, both ways.
        faintest, strongest: distance of the letter's colour from the mean of the photograph below, per channel of
            values in [0, 1].
        thinnest: lowest opacity of the letter.
        noise: largest standard deviation of the noise that is added to values in [0, 1].
    """

    smallest: float = 0.5
    largest: float = 1.0
    stretch: float = 1.3
    slant: float = 20.0
    shear: float = 0.25
    faintest: float = 0.2
    strongest: float = 0.7
    thinnest: float = 0.7
    noise: float = 0.08


def glyph_masks(fonts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Draw every letter in both cases and every font.

    Returns:
        Opacity of shape (N, 1, SIDE, SIDE), float in [0, 1], and the index of the letter in LETTERS, (N,), int64; N is
        2 * len(LETTERS) * len(fonts).

    Raises:
        DataError: a font is missing or is none.
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    folder = package_folder("matplotlib") / "mpl-data" / "fonts" / "ttf"
    masks = []
    for name in fonts:
        try:
            # The basic layout draws a letter alike with and without the libraries that shape complex scripts.
            font = ImageFont.truetype(str(folder / f"{name}.ttf"), EM, layout_engine=ImageFont.Layout.BASIC)
        except OSError as error:
            raise DataError(
                f"the font {name}.ttf cannot be read from {folder} ({error}); install matplotlib from its wheel, which "
                "brings it"
            ) from error
        for letter in LETTERS + LETTERS.lower():
            mask = Image.new("L", (SIDE, SIDE))
            left, top, right, bottom = font.getbbox(letter)
            start = ((SIDE - left - right) / 2, (SIDE - top - bottom) / 2)
            ImageDraw.Draw(mask).text(start, letter, fill=255, font=font)
            masks.append(torch.from_numpy(np.array(mask)))
    classes = torch.arange(len(LETTERS)).repeat(2 * len(fonts))
    return torch.stack(masks)[:, None].to(torch.float32) / 255, classes


def photographs(train: bool) -> list[Tensor]:
    """Load the photographs that matplotlib and scikit-learn bring, in full and in half size.

    Args:
        train: whether the part for training images is returned, or that for test images.

    Returns:
        Tensors of shape (3, H, W), float in [0, 1]; H and W are at least SIDE.

    Raises:
        DataError: a photograph is missing or cannot be decoded.
    """
    import numpy as np
    from PIL import Image

    images = package_folder("sklearn") / "datasets" / "images"
    samples = package_folder("matplotlib") / "mpl-data" / "sample_data"
    paths = (images / "china.jpg", images / "flower.jpg", samples / "grace_hopper.jpg")
    parts = []
    for path in paths:
        try:
            picture = Image.open(path).convert("RGB")
        except OSError as error:
            raise DataError(
                f"the photograph {path.name} cannot be read from {path.parent} ({error}); install matplotlib and "
                "scikit-learn from their wheels, which bring it"
            ) from error
        for sized in (picture, picture.reduce(2)):
            border = round((1 - TRAIN_SHARE) * sized.width)
            part = sized.crop((border, 0, *sized.size) if train else (0, 0, border, sized.height))
            parts.append(torch.from_numpy(np.array(part)).permute(2, 0, 1).to(torch.float32) / 255)
    return parts


def package_folder(name: str) -> Path:
    """Return the folder of an installed package, which is not imported: that takes seconds."""
    found = find_spec(name)
    if found is None or found.origin is None:
        raise DataError(f"the package {name} is not installed; install it, because its fonts or images are needed")
    return Path(found.origin).parent


def draw_glyphs(
    type_masks: tuple[Tensor, Tensor],
    pictures: Sequence[Tensor],
    count: int,
    seed: int,
    side: int,
    settings: Difficulty | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw `count` images; the same seed gives the same images.

    Args:
        type_masks: what `glyph_masks` returns.
        pictures: what `photographs` returns.
        side: of an image in pixels: SIDE, or SIDE divided by a whole number.

    Returns:
        Images of shape (count, 3, side, side), uint8, and the class of the letter in each, of shape (count,), int64.
    """
    settings = settings or Difficulty()
    random = torch.Generator().manual_seed(seed)
    masks, classes = type_masks
    # Every letter of every font is used once before any is used again, which keeps the class proportions.
    rounds = [torch.randperm(len(masks), generator=random) for _ in range(math.ceil(count / len(masks)))]
    chosen = torch.cat(rounds)[:count]
    drawn = [_drawn(masks[part], pictures, side, settings, random) for part in chosen.split(CHUNK)]
    return torch.cat(drawn), classes[chosen]


def _drawn(
    masks: Tensor, pictures: Sequence[Tensor], side: int, settings: Difficulty, random: torch.Generator
) -> Tensor:
    """Draw one image per mask, of shape (len(masks), 3, side, side), uint8."""
    count = len(masks)
    canvas = functional.avg_pool2d(_crops(pictures, count, random), SIDE // side)
    letters = functional.avg_pool2d(_placed(masks, settings, random), SIDE // side)
    opacity = settings.thinnest + (1 - settings.thinnest) * torch.rand(count, 1, 1, 1, generator=random)
    canvas = painted(canvas, opacity * letters, _colour(canvas, settings, random))
    canvas = _blurred(canvas, torch.rand(count, 1, 1, 1, generator=random))
    noise = settings.noise * torch.rand(count, 1, 1, 1, generator=random)
    canvas = canvas + noise * torch.randn(canvas.shape, generator=random)
    return (canvas.clamp(0, 1) * 255).round().to(torch.uint8)


def _crops(pictures: Sequence[Tensor], count: int, random: torch.Generator) -> Tensor:
    """Cut random squares out of random pictures and mirror half of them, of shape (count, 3, SIDE, SIDE)."""
    crops = []
    for which, down, right, mirrored in torch.rand(count, 4, generator=random).tolist():
        picture = pictures[int(which * len(pictures))]
        top, left = (int(at * (size - SIDE + 1)) for at, size in zip((down, right), picture.shape[1:], strict=True))
        crop = picture[:, top : top + SIDE, left : left + SIDE]
        crops.append(crop.flip(-1) if mirrored < 0.5 else crop)
    return torch.stack(crops)


def _colour(canvas: Tensor, settings: Difficulty, random: torch.Generator) -> Tensor:
    """Draw a colour per image that lies away from the image's mean, where there is more room, (count, 3, 1, 1)."""
    mean = canvas.mean((2, 3), keepdim=True)
    distance = torch.rand(len(canvas), 1, 1, 1, generator=random)
    distance = settings.faintest + (settings.strongest - settings.faintest) * distance
    away = torch.where(mean < 0.5, 1.0, -1.0) * (1 - 0.5 * torch.rand(mean.shape, generator=random))
    colour: Tensor = (mean + distance * away).clamp(0, 1)
    return colour


def _blurred(images: Tensor, share: Tensor) -> Tensor:
    """Mix images of shape (N, 3, H, W) with their blurred copies, which make up `share` of shape (N, 1, 1, 1)."""
    blurred = images
    for _ in range(2):  # of binomial smoothing: nearly a Gaussian with a standard deviation of one pixel
        for axis in (2, 3):
            before, after = blurred.narrow(axis, 0, 1), blurred.narrow(axis, -1, 1)
            rest = images.shape[axis] - 1
            earlier = torch.cat([before, blurred.narrow(axis, 0, rest)], axis)
            later = torch.cat([blurred.narrow(axis, 1, rest), after], axis)
            blurred = (earlier + 2 * blurred + later) / 4
    return images + share * (blurred - images)


def _placed(masks: Tensor, settings: Difficulty, random: torch.Generator) -> Tensor:
    """Scale, stretch, shear, rotate and shift masks of shape (N, 1, SIDE, SIDE); their middle stays well inside."""
    count = len(masks)
    size, wide, turn, lean, down, right = torch.rand(6, count, generator=random)
    zoom = (EM / SIDE) / (settings.smallest + (settings.largest - settings.smallest) * size)
    stretch = (math.log(settings.stretch) * (2 * wide - 1)).exp()
    angle = math.radians(settings.slant) * (2 * turn - 1)
    shear = settings.shear * (2 * lean - 1)
    room = (1 - 0.8 / zoom).clamp(min=0)  # in units in which the image reaches from -1 to 1
    x, y = (2 * right - 1) * room, (2 * down - 1) * room
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    across, along = (cosine + shear * sine) / stretch, (sine - shear * cosine) / stretch
    # Rows of the matrix that leads from a place in the image back to the place in the mask.
    rows = [
        torch.stack([across, along, -across * x - along * y], 1),
        torch.stack([-sine, cosine, sine * x - cosine * y], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), [count, 1, SIDE, SIDE], align_corners=False)
    return functional.grid_sample(masks, grid, align_corners=False).clamp(0, 1)
