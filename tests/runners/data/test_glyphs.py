"""Letters over photographs: what they show, that they come out alike, and that train and test share no source."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_sample_image

from runners.config import DataConfig
from runners.data import builtin
from runners.data import glyphs as module
from runners.data.glyphs import (
    LETTERS,
    SIDE,
    TEST_FONTS,
    TRAIN_FONTS,
    Difficulty,
    draw_glyphs,
    glyph_masks,
    photographs,
)
from runners.data.loading import load_data
from runners.data.splits import DataError

FAMILIES = ("DejaVuSansMono", "DejaVuSerif", "DejaVuSans", "STIXGeneral", "cmss", "cmtt", "cm")
DIGEST = """
import hashlib, torch
from runners.data.glyphs import draw_glyphs, glyph_masks, photographs
for threads in (1, 3):
    torch.set_num_threads(threads)
    images, _ = draw_glyphs(glyph_masks(["cmr10"]), photographs(train=True), 250, 3, 32)
    print(hashlib.sha256(images.numpy().tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def masks():
    return glyph_masks(["cmr10", "DejaVuSans"])


@pytest.fixture(scope="module")
def pictures():
    return photographs(train=True)


def test_images_are_the_same_in_every_process_and_with_every_number_of_threads(pictures):
    images, _ = draw_glyphs(glyph_masks(["cmr10"]), pictures, 250, 3, 32)
    here = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    command = [sys.executable, "-c", DIGEST]
    there = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert there.stdout.split() == [here] * 2


@pytest.mark.parametrize("side", [SIDE, SIDE // 2])
def test_images_have_the_size_asked_for_and_every_class_equally_often(masks, pictures, side):
    images, classes = draw_glyphs(masks, pictures, 160, 4, side)
    assert images.shape == (160, 3, side, side)
    assert images.dtype == torch.uint8
    assert images.min() < 40
    assert images.max() > 215
    assert torch.bincount(classes).tolist() == [8] * len(LETTERS)
    assert not torch.equal(images, draw_glyphs(masks, pictures, 160, 5, side)[0])


def test_a_class_is_a_letter_in_both_cases_and_all_fonts(masks):
    opacity, classes = masks
    assert opacity.shape == (2 * 2 * len(LETTERS), 1, SIDE, SIDE)
    assert torch.bincount(classes).tolist() == [4] * len(LETTERS)
    assert len({mask.numpy().tobytes() for mask in opacity}) == len(opacity)
    rows, columns = (opacity[:, 0] > 0).any(2), (opacity[:, 0] > 0).any(1)
    for covered in (rows, columns):  # nothing is cut off, and the letter stands in the middle
        first, last = covered.int().argmax(1), SIDE - 1 - covered.flip(1).int().argmax(1)
        assert first.min() > 0
        assert last.max() < SIDE - 1
        assert ((first + last - (SIDE - 1)).abs() <= 6).all()


def test_without_transparency_blur_and_noise_the_letter_differs_from_the_photograph_by_the_distance_set(monkeypatch):
    monkeypatch.setattr(module, "_blurred", lambda images, share: images)
    settings = Difficulty(faintest=0.25, strongest=0.25, thinnest=1.0, noise=0.0)
    grey = torch.full((3, SIDE, SIDE), 0.4)
    images, _ = draw_glyphs(glyph_masks(["DejaVuSans-Bold"]), [grey], 40, 0, SIDE, settings)
    distance = images.to(torch.float32) / 255 - 0.4
    assert distance.min() > -0.01
    assert distance.max() < 0.25 + 0.01
    assert (distance.amax((2, 3)) > 0.125 - 0.01).all()  # every channel of every letter


def test_train_and_test_share_no_family_of_fonts_and_every_letter_of_a_test_font_is_new():
    families = [
        {next(family for family in FAMILIES if font.startswith(family)) for font in fonts}
        for fonts in (TRAIN_FONTS, TEST_FONTS)
    ]
    assert not families[0] & families[1]
    train, test = ({mask.numpy().tobytes() for mask in glyph_masks(fonts)[0]} for fonts in (TRAIN_FONTS, TEST_FONTS))
    assert not train & test


def test_train_and_test_share_no_part_of_a_photograph():
    china = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1) / 255
    train, test = photographs(train=True), photographs(train=False)
    assert torch.equal(torch.cat([test[0], train[0]], 2), china)
    assert len(train) == len(test) == 6
    assert all(min(part.shape[1:]) >= SIDE for part in train + test)


def test_the_set_has_4000_training_and_2000_test_images_of_all_classes():
    data = load_data(DataConfig(name="glyphs"), seed=0)
    assert (len(data.train), len(data.val), len(data.test)) == (3200, 800, 2000)
    assert (data.num_classes, data.input_shape) == (len(LETTERS), (3, 32, 32))
    assert torch.bincount(data.test.labels).tolist() == [100] * len(LETTERS)
    train = torch.bincount(torch.cat([data.train.labels, data.val.labels]))
    each = 4000 // (2 * len(LETTERS) * len(TRAIN_FONTS))  # uses of every letter of every font; the rest are random
    assert train.min() >= each * 2 * len(TRAIN_FONTS)
    assert train.max() <= 200 * 1.05


@pytest.mark.parametrize(("size", "drawn"), [(0, 32), (24, 32), (48, 64), (64, 64), (96, 64)])
def test_the_set_is_drawn_larger_for_larger_inputs(monkeypatch, size, drawn):
    monkeypatch.setattr(builtin, "GLYPH_TRAIN_IMAGES", 80)
    monkeypatch.setattr(builtin, "GLYPH_TEST_IMAGES", 40)
    data = load_data(DataConfig(name="glyphs", image_size=size), seed=0)
    assert data.train.images.shape == (64, 3, drawn, drawn)
    images, _ = next(data.test.batches(8, device=torch.device("cpu")))
    assert images.shape == (8, 3, size or 32, size or 32)
    assert data.train.augmentation.shift == drawn // 16


def test_a_font_or_photograph_that_is_missing_is_named_with_the_package_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "package_folder", lambda name: tmp_path)
    with pytest.raises(DataError, match=r"font cmr10\.ttf cannot be read from .*install matplotlib"):
        glyph_masks(["cmr10"])
    with pytest.raises(DataError, match=r"photograph china\.jpg cannot be read from .*install .*scikit-learn"):
        photographs(train=True)


def test_a_damaged_font_or_photograph_is_an_error_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "package_folder", lambda name: tmp_path)
    for file in ("mpl-data/fonts/ttf/cmr10.ttf", "datasets/images/china.jpg"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_bytes(b"no font, no photograph")
    with pytest.raises(DataError, match=r"font cmr10\.ttf cannot be read"):
        glyph_masks(["cmr10"])
    with pytest.raises(DataError, match=r"photograph china\.jpg cannot be read"):
        photographs(train=True)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="package matplotlib is not installed; install it"):
        glyph_masks(["cmr10"])
