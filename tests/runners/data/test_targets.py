"""Samples of a user whose targets are no classes: masks, maps and numbers."""

import pytest
import torch
from torch.utils.data import Dataset

from runners.config import DataConfig
from runners.data.loading import load_data
from runners.data.splits import DataError

CPU = torch.device("cpu")


class Masks(Dataset):
    """The mask is where the image is above a half; with `flips`, both are mirrored at random together."""

    def __init__(self, seed, flips=False):
        self.images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        self.flips = flips

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        if self.flips and torch.rand(()) < 0.5:
            image = image.flip(-1)
        return {"image": image, "target": image[0] > 0.5}


def make_masks(config, seed):
    return Masks(0, flips=True), Masks(1), Masks(2)


def make_still(config, seed):
    return Masks(0), Masks(2)


def make_depths(config, seed):
    images = Masks(0).images
    return (images, images.mean((1, 2, 3))), (images[:4], images[:4].mean((1, 2, 3)))


class Uneven(Masks):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample | ({"target": sample["target"][:4]} if index == 7 else {})


def make_uneven(config, seed):
    return Uneven(0), Masks(2)


class Endless(Masks):
    def __getitem__(self, index):
        return super().__getitem__(index) | {"target": torch.tensor(float("nan"))}


def make_endless(config, seed):
    return Endless(0), Masks(2)


def loaded(name, **settings):
    return load_data(DataConfig(name=f"{__name__}:{name}", workers=0, **settings), seed=0, classifies=False)


def test_a_random_change_acts_on_image_and_target_of_one_reading():
    data = loaded("make_masks")
    readings = []
    for shuffle_seed in (1, 2):
        for images, targets in data.train.batches(4, device=CPU, shuffle_seed=shuffle_seed, augment=True):
            assert targets.dtype == torch.int64
            assert torch.equal(targets, (images[:, 0] > 0.5).to(torch.int64))
            readings.append(images)
    assert data.num_classes == 2
    read = torch.cat(readings)
    assert any(torch.equal(image, other.flip(-1)) for image in read for other in read)  # both ways of an image


def test_validation_is_cut_from_samples_with_targets():
    data = loaded("make_still")
    assert (len(data.train), len(data.val), len(data.test)) == (10, 2, 12)
    for images, targets in data.val.batches(4, device=CPU):
        assert torch.equal(targets, (images[:, 0] > 0.5).to(torch.int64))
    assert loaded("make_still").fingerprint == data.fingerprint


def test_numbers_are_targets_of_real_value():
    data = loaded("make_depths")
    assert data.num_classes == 1
    for images, targets in data.train.batches(4, device=CPU):
        assert torch.allclose(targets, images.mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("make_uneven", r"sample 7 has an image of shape \(3, 8, 8\) and a target of shape \(4, 8\), others have"),
        ("make_endless", "sample 0 has 1 of 1 target values that are NaN"),
    ],
)
def test_a_sample_that_does_not_suit_the_others_is_named(name, message):
    with pytest.raises(DataError, match=message):
        loaded(name)
