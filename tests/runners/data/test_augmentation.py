"""Random changes of training images, by name."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_images import collected, small_split

from runners.config import AUGMENTATIONS, DataConfig
from runners.data.augmentation import Augmentation, named_augmentation
from runners.data.loading import load_data
from runners.data.seeding import seeded
from runners.data.splits import DataError
from spaces.errors import ConfigError

CPU = torch.device("cpu")


def test_augmentation_shifts_each_image_by_at_most_its_shift_and_follows_the_seed():
    images = torch.zeros(64, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 200
    moved = Augmentation(shift=2)(images, torch.Generator().manual_seed(0))
    spots = moved.flatten(1).argmax(1)
    rows, columns = spots // 9, spots % 9
    assert moved.dtype == torch.uint8
    assert (moved.flatten(1) > 0).sum(1).tolist() == [1] * 64
    assert {rows.min().item(), rows.max().item(), columns.min().item(), columns.max().item()} == {2, 6}
    assert torch.equal(moved, Augmentation(shift=2)(images, torch.Generator().manual_seed(0)))


def test_constant_padding_is_black_and_shifts_as_far_as_reflect_padding():
    images = torch.full((64, 1, 6, 6), 200, dtype=torch.uint8)
    images[:, :, 2, 3] = 100
    constant, reflected = (
        Augmentation(shift=2, padding_mode=padding_mode)(images, torch.Generator().manual_seed(0))
        for padding_mode in ("constant", "reflect")
    )
    assert constant.shape == images.shape
    assert set(constant.unique().tolist()) == {0, 100, 200}
    assert set(reflected.unique().tolist()) == {100, 200}
    inside = constant > 0
    assert torch.equal(constant[inside], reflected[inside])
    assert inside[:, 0].sum((1, 2)).tolist() == [
        int(columns * rows)
        for columns, rows in zip(inside[:, 0].any(1).sum(1), inside[:, 0].any(2).sum(1), strict=True)
    ]


def test_flipping_flips_about_half_of_the_images():
    images = torch.arange(4.0).expand(200, 1, 4, 4)
    flipped = Augmentation(flip=True)(images, torch.Generator().manual_seed(0))[:, 0, 0, 0] == 3
    assert 70 < flipped.sum() < 130


def test_reflect_padding_equals_that_of_torch():
    images = torch.arange(36.0).reshape(1, 1, 6, 6)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="reflect")
    windows = [padded[..., row : row + 6, column : column + 6] for row in range(5) for column in range(5)]
    for seed in range(8):
        moved = Augmentation(shift=2, padding_mode="reflect")(images, torch.Generator().manual_seed(seed))
        assert any(torch.equal(moved, window) for window in windows)


def test_names_are_read_in_any_order_and_unknown_ones_refused():
    assert DataConfig().augmentations is None
    assert DataConfig(augment="none").augmentations == ()
    assert DataConfig(augment=" Erasing,flip").augmentations == ("flip", "erasing")
    with pytest.raises(ConfigError, match=r"--augment 'flip,colour' has 'colour'; give some of shift, flip, crop"):
        DataConfig(augment="flip,colour")


def test_named_changes_have_the_shift_of_the_dataset_or_an_eighth_of_the_side():
    own = Augmentation(shift=2, flip=True, padding_mode="constant")
    assert named_augmentation(("shift",), own, (32, 32), 10) == Augmentation(2, padding_mode="constant")
    assert named_augmentation(("shift",), Augmentation(), (32, 48), 10).shift == 4
    assert named_augmentation((), own, (32, 32), 10).shift == 0
    assert named_augmentation(("cutmix",), own, (32, 32), 10).classes == 10


def test_digits_are_shifted_and_not_flipped_unless_asked():
    own, none, flipped = (
        load_data(DataConfig("digits", augment=text), 0).train for text in ("auto", "none", "flip,erasing")
    )
    assert (own.augmentation.shift, own.augmentation.flip) == (2, False)
    assert (none.augmentation.shift, none.augmentation.flip) == (0, False)
    assert (flipped.augmentation.shift, flipped.augmentation.flip, flipped.augmentation.erasing) == (0, True, True)
    plain = collected(none.subset(torch.arange(8)))
    assert torch.equal(
        collected(none.subset(torch.arange(8)), shuffle_seed=3, augment=True).sort(0)[0], plain.sort(0)[0]
    )


@pytest.mark.parametrize("name", ["flip", "crop", "randaugment", "erasing"])
def test_every_change_follows_the_seed_and_keeps_shape_and_global_generators(name):
    images = torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    change = named_augmentation((name,), Augmentation(), (16, 16), 4)
    before = torch.get_rng_state()
    first, same, other = (change(images, torch.Generator().manual_seed(seed), (0.5,) * 3) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == images.shape
    assert first.dtype == images.dtype
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, images)


@pytest.mark.parametrize("name", sorted({*AUGMENTATIONS} - {"mixup", "cutmix"}))
def test_a_picture_is_changed_to_a_tensor_of_the_size_asked_for(name):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    change = named_augmentation((name,), Augmentation(), (16, 16), 4).per_image((16, 16), (0.5,) * 3, byte=True)
    found = []
    for seed in range(40):
        with seeded(seed):
            found.append(change(picture))
    assert {(image.shape, image.dtype) for image in found} == {((3, 16, 16), torch.uint8)}
    assert len({image.numpy().tobytes() for image in found}) > 1


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_images_have_the_shares_of_both_classes_for_labels(name):
    split = small_split(12).with_augmentation(Augmentation(mixing=(name,), classes=3))
    batches = list(split.batches(6, device=CPU, shuffle_seed=1, augment=True))
    for images, labels in batches:
        assert (images.shape, labels.shape) == ((6, 3, 4, 4), (6, 3))
        assert torch.allclose(labels.sum(1), torch.ones(6))
    assert any(((labels > 0).sum(1) == 2).any() for _, labels in batches)
    again = list(split.batches(6, device=CPU, shuffle_seed=1, augment=True))
    assert all(
        torch.equal(a, b) for one, two in zip(batches, again, strict=True) for a, b in zip(one, two, strict=True)
    )
    assert [labels.dtype for _, labels in split.batches(6, device=CPU)] == [torch.int64] * 2


def test_a_net_trains_on_mixed_images():
    from tiny_training import CONFIG, tiny_net, two_colours

    from runners.training.loop import fit
    from runners.training.run import TrainingRun

    split = two_colours().with_augmentation(Augmentation(mixing=("mixup", "cutmix"), classes=2))
    assert list(fit(tiny_net(), split, CONFIG, TrainingRun(2, 0.1, 0, CPU))) == [1, 2]


def test_randaugment_of_what_is_no_picture_is_refused(tmp_path, monkeypatch):
    (tmp_path / "float_images.py").write_text(
        "import torch\n"
        "def make(config, seed):\n"
        "    part = torch.rand(20, 3, 8, 8), torch.arange(20) % 2\n"
        "    return part, part\n"
        "def deep(config, seed):\n"
        "    part = torch.zeros(20, 5, 8, 8, dtype=torch.uint8), torch.arange(20) % 2\n"
        "    return part, part\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="float_images:make gives images of floats, and RandAugment changes bytes of"):
        load_data(DataConfig(name="float_images:make", augment="randaugment"), seed=0)
    with pytest.raises(DataError, match="float_images:deep gives images of 5 channels, and RandAugment changes"):
        load_data(DataConfig(name="float_images:deep", augment="randaugment"), seed=0)
    assert load_data(DataConfig(name="float_images:make", augment="flip"), seed=0).train.augmentation.flip
