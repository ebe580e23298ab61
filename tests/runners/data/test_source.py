"""The preparation that all datasets share."""

import pytest
import torch

from runners.config import DataConfig
from runners.data.source import class_mixed_order, shape_for, with_channels
from runners.data.splits import DataError


def test_class_mixed_order_keeps_proportions_in_every_part():
    labels = torch.tensor([0] * 30 + [1] * 60 + [2] * 10)
    order = class_mixed_order(labels, seed=3)
    assert sorted(order.tolist()) == list(range(100))
    for start in range(0, 100, 20):
        assert torch.bincount(labels[order[start : start + 20]], minlength=3).tolist() == [6, 12, 2]


def test_an_empty_dataset_has_an_empty_order():
    assert class_mixed_order(torch.zeros(0, dtype=torch.int64), seed=0).tolist() == []


@pytest.mark.parametrize(
    ("image_size", "wanted", "expected"),
    [(0, None, (3, 28, 28)), (0, (1, 64, 64), (1, 64, 64)), (16, None, (3, 16, 16)), (16, (1, 64, 64), (1, 16, 16))],
)
def test_the_configured_size_wins_over_the_wanted_over_the_natural(image_size, wanted, expected):
    assert shape_for(DataConfig(image_size=image_size), wanted, (3, 28, 28)) == expected


def test_grey_images_are_repeated_and_colours_averaged():
    grey = torch.tensor([10, 20], dtype=torch.uint8).reshape(2, 1, 1, 1)
    assert with_channels(grey, 3).flatten(1).tolist() == [[10] * 3, [20] * 3]
    colours = torch.tensor([[10, 20, 33]], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert with_channels(colours, 1).flatten().tolist() == [21]
    assert with_channels(colours, 1).dtype == torch.uint8
    with pytest.raises(DataError, match="the network reads 4 channels, the images have 3"):
        with_channels(colours, 4)
