"""How a dataset is split for a search, and which settings are refused."""

import pytest
import torch
from tiny_images import collected, write_images

from runners.config import DataConfig
from runners.data.loading import DATASETS, load_data
from spaces.errors import UnknownNameError

CPU = torch.device("cpu")


def test_every_split_of_digits_holds_the_classes_in_proportion(digits):
    for split in (digits.train, digits.val, digits.test, digits.probe, digits.calibration):
        counts = torch.bincount(split.labels, minlength=10) / len(split)
        assert (counts - 0.1).abs().max() < 0.015


def test_the_seed_moves_validation_and_leaves_the_test_images(digits):
    other = load_data(DataConfig("digits"), seed=1)
    assert torch.equal(other.test.images, digits.test.images)
    assert not torch.equal(other.val.images, digits.val.images)
    assert other.fingerprint != digits.fingerprint
    assert load_data(DataConfig("digits"), seed=0).fingerprint == digits.fingerprint


def test_no_image_is_in_two_of_train_val_and_test(digits):
    kept = [{image.numpy().tobytes() for image in split.images} for split in (digits.train, digits.val, digits.test)]
    assert sum(map(len, kept)) == len(set().union(*kept))


def test_probe_and_calibration_are_training_images_that_do_not_overlap(digits):
    train, probe, calibration = (
        {image.numpy().tobytes() for image in split.images}
        for split in (digits.train, digits.probe, digits.calibration)
    )
    assert probe <= train
    assert calibration <= train
    assert not probe & calibration


@pytest.mark.parametrize(
    ("config", "shape", "expected"),
    [
        (DataConfig("digits", image_size=16), None, (3, 16, 16)),
        (DataConfig("digits"), (1, 28, 28), (1, 28, 28)),
        (DataConfig("digits", image_size=24), (3, 64, 64), (3, 24, 24)),
    ],
)
def test_the_size_asked_for_wins_over_the_networks_over_the_natural(config, shape, expected):
    data = load_data(config, seed=0, input_shape=shape)
    assert data.input_shape == expected
    assert next(data.val.batches(2, device=CPU))[0].shape[1:] == expected


def test_half_scales_bytes_to_minus_one_to_one_in_every_part(tmp_path):
    for part in ("train", "test"):
        write_images(tmp_path / part, {"a": 4, "b": 4})
    for name in ("digits", f"imagefolder:{tmp_path}"):
        natural, half = (load_data(DataConfig(name=name, scale=scale), seed=0) for scale in ("set", "half"))
        assert natural.fingerprint != half.fingerprint
        for part in ("train", "val", "test", "probe", "calibration"):
            before, after = getattr(natural, part), getattr(half, part)
            std, mean = (torch.tensor(values)[:, None, None] for values in (before.std, before.mean))
            torch.testing.assert_close(collected(after), 2 * (collected(before) * std + mean) - 1, rtol=1e-4, atol=1e-4)


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean cifar10"):
        load_data(DataConfig(name="cifar"), seed=0)
    assert set(DATASETS) == {"digits", "cluttered_digits", "coloured_digits", "glyphs", "cifar10", "cifar100", "mnist"}
