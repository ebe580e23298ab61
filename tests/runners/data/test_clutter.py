"""Cluttered digits: what they show, and that train and test share no digit."""

import torch

from runners.data.clutter import clutter


def test_cluttered_digits_are_the_same_every_time_and_of_the_sizes_said():
    source = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 10
    first, classes = clutter(source, labels, 30, seed=4)
    assert first.shape == (30, 3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, clutter(source, labels, 30, seed=4)[0])
    assert not torch.equal(first, clutter(source, labels, 30, seed=5)[0])
    assert torch.bincount(classes, minlength=10).tolist() == [3] * 10
