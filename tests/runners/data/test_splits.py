"""Splits in memory: batches, and images that are held."""

import pickle

import pytest
import torch
from tiny_images import collected, small_split

from runners.data.augmentation import Augmentation
from runners.data.splits import HeldSplit

CPU = torch.device("cpu")


def test_batches_are_normalised_shuffled_by_seed_and_limited():
    split = small_split()
    plain = collected(split)
    assert torch.allclose(plain, (split.images / 255 - 0.5) / 0.25, atol=1e-6)
    assert torch.equal(collected(split, shuffle_seed=1), collected(split, shuffle_seed=1))
    assert not torch.equal(collected(split, shuffle_seed=1), collected(split, shuffle_seed=2))
    assert [len(labels) for _, labels in split.batches(5, device=CPU, limit=7)] == [5, 2]


@pytest.mark.parametrize("mixing", [(), ("mixup", "cutmix")])
def test_batches_after_those_that_are_left_out_are_the_same(mixing: tuple[str, ...]) -> None:
    augmentation = Augmentation(shift=1, flip=True, mixing=mixing, classes=10 if mixing else 0)
    split = small_split().with_augmentation(augmentation)
    whole = list(split.batches(3, device=CPU, shuffle_seed=4, augment=True))
    for skip in range(len(whole) + 1):
        later = list(split.batches(3, device=CPU, shuffle_seed=4, augment=True, skip=skip))
        for batch, own in zip(whole[skip:], later, strict=True):
            assert all(torch.equal(*parts) for parts in zip(batch, own, strict=True))


@pytest.mark.parametrize("limit", [0, 3, 7, 9, 100, None])
def test_batches_of_held_images_are_those_of_the_split(limit: int | None) -> None:
    split = small_split()
    held = HeldSplit(split, 7, CPU)
    expected, found = (list(each.batches(4, device=CPU, limit=limit)) for each in (split, held))
    expected = [batch for batch in expected if len(batch[1])]
    assert len(found) == len(expected)
    assert len(list(held.batches(4, device=CPU, limit=limit, skip=1))) == max(0, len(expected) - 1)
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


def test_images_are_moved_to_another_device_once_and_never_pickled():
    split, meta = small_split(), torch.device("meta")
    images, labels = next(split.batches(5, device=meta))
    assert (images.device.type, labels.device.type, images.shape) == ("meta", "meta", (5, 3, 4, 4))
    moved = split._on(meta)[0]
    list(split.batches(5, device=meta, shuffle_seed=1))
    assert split._on(meta)[0] is moved
    assert pickle.loads(pickle.dumps(split))._moved == {}


def test_images_that_a_device_has_no_room_for_are_moved_batch_by_batch(monkeypatch):
    split, device = small_split(), torch.device("meta")
    real = torch.Tensor.to

    def full(tensor, *arguments, **settings):
        if tensor is split.images:
            raise torch.OutOfMemoryError("full")
        return real(tensor, *arguments, **settings)

    monkeypatch.setattr(torch.Tensor, "to", full)
    assert [images.shape[0] for images, _ in split.batches(5, device=device)] == [5, 5, 2]
    assert split._on(device)[0] is split.images
