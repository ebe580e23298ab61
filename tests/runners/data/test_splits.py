"""Splits: batches, augmentation and reading ahead."""

import pytest
import torch
from tiny_images import collected, small_split, write_images

from runners.config import DataConfig
from runners.data.loading import load_data
from runners.data.splits import Augmentation, DataError, HeldSplit

CPU = torch.device("cpu")


def test_batches_are_normalised_shuffled_by_seed_and_limited():
    split = small_split()
    plain = collected(split)
    assert torch.allclose(plain, (split.images / 255 - 0.5) / 0.25, atol=1e-6)
    assert torch.equal(collected(split, shuffle_seed=1), collected(split, shuffle_seed=1))
    assert not torch.equal(collected(split, shuffle_seed=1), collected(split, shuffle_seed=2))
    assert [len(labels) for _, labels in split.batches(5, device=CPU, limit=7)] == [5, 2]


@pytest.mark.parametrize("limit", [0, 3, 7, 9, 100, None])
def test_batches_of_held_images_are_those_of_the_split(limit: int | None) -> None:
    split = small_split()
    held = HeldSplit(split, 7, CPU)
    expected, found = (list(each.batches(4, device=CPU, limit=limit)) for each in (split, held))
    expected = [batch for batch in expected if len(batch[1])]
    assert len(found) == len(expected)
    for (images, labels), (own_images, own_labels) in zip(expected, found, strict=True):
        assert torch.equal(images, own_images)
        assert torch.equal(labels, own_labels)


def test_held_images_are_read_once_and_shuffled_ones_come_from_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    split = small_split()
    held = HeldSplit(split, 7, CPU)
    shuffled = [collected(each, shuffle_seed=1) for each in (split, held)]
    assert torch.equal(*shuffled)
    assert (len(held), held.digest()) == (len(split), split.digest())
    monkeypatch.setattr(type(split), "batches", None)
    assert [len(labels) for _, labels in held.batches(5, device=CPU, limit=7)] == [5, 2]


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


def test_a_crop_keeps_the_least_area_at_least():
    from runners.data.splits import _random_box

    generator = torch.Generator().manual_seed(0)
    for least in (0.08, 0.5, 1.0):
        areas = [box[2] * box[3] / 100**2 for box in (_random_box(100, 100, least, generator) for _ in range(200))]
        assert least * 0.7 < min(areas) < least * 1.2  # a box longer than the image is cut off
        assert max(areas) <= 1


def test_flipping_flips_about_half_of_the_images():
    images = torch.arange(4.0).expand(200, 1, 4, 4)
    flipped = Augmentation(flip=True)(images, torch.Generator().manual_seed(0))[:, 0, 0, 0] == 3
    assert 70 < flipped.sum() < 130


def test_batches_do_not_depend_on_the_number_of_threads(tmp_path):
    from runners.data.splits import _read_ahead

    def read(position: int) -> torch.Tensor:
        return torch.tensor([position])

    order = torch.arange(23)
    for threads in (1, 4):
        found = [images for _, images in _read_ahead(read, torch.split(order, 4), threads)]
        assert torch.equal(torch.cat(found)[:, 0], order)


def test_an_image_damaged_behind_its_head_is_named_when_read(tmp_path):
    write_images(tmp_path, {"cat": 3, "dog": 3}, side=64)
    data = load_data(DataConfig(name=f"imagefolder:{tmp_path}"), seed=0)
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"\.png cannot be read as an image"):
        collected(data.train)


def test_reflect_padding_equals_that_of_torch():
    images = torch.arange(36.0).reshape(1, 1, 6, 6)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="reflect")
    windows = [padded[..., row : row + 6, column : column + 6] for row in range(5) for column in range(5)]
    for seed in range(8):
        moved = Augmentation(shift=2, padding_mode="reflect")(images, torch.Generator().manual_seed(seed))
        assert any(torch.equal(moved, window) for window in windows)


def test_a_subset_of_a_subset_has_the_images_and_labels_at_its_positions():
    split = small_split()
    part = split.subset(torch.tensor([5, 3, 8])).subset(torch.tensor([2, 0]))
    assert torch.equal(part.images, split.images[[8, 5]])
    assert part.labels.tolist() == [2, 2]


def test_the_digest_follows_images_and_preparation():
    split = small_split()
    assert split.digest() == small_split().digest()
    assert split.digest() != small_split(augmentation=Augmentation(shift=1)).digest()
    assert split.digest() != split.subset(torch.arange(11)).digest()
