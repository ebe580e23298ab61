"""Accuracy and proxy from one pass over images."""

import math

import pytest
import torch
from torch import nn

from runners.data.splits import TensorSplit
from runners.evaluation.proxy import PROXY_IMAGES, accuracy_and_proxy
from runners.training.loop import accuracy

CPU = torch.device("cpu")


def split_of(labels: torch.Tensor) -> TensorSplit:
    """Return images of one pixel that hold their class."""
    return TensorSplit(labels.float()[:, None, None, None], labels, (0.0,), (1.0,), (1, 1))


class TwoClasses(nn.Module):
    """Is sure of class 0 by odds of 3 to 1, whatever it sees."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([math.log(3.0), 0.0]).expand(len(images), 2)


def test_the_proxy_is_minus_the_mean_cross_entropy() -> None:
    split = split_of(torch.tensor([0, 0, 0, 1]))
    found = accuracy_and_proxy(TwoClasses(), split, device=CPU)
    assert found == (0.75, pytest.approx((3 * math.log(0.75) + math.log(0.25)) / 4))


def test_the_proxy_is_that_of_the_first_images_and_the_accuracy_that_of_all() -> None:
    split = split_of(torch.cat([torch.zeros(PROXY_IMAGES), torch.ones(PROXY_IMAGES)]).long())
    assert accuracy_and_proxy(TwoClasses(), split, device=CPU) == (0.5, pytest.approx(math.log(0.75)))
    limited = accuracy_and_proxy(TwoClasses(), split, device=CPU, limit=PROXY_IMAGES)
    assert limited == (1.0, pytest.approx(math.log(0.75)))


def test_the_accuracy_is_that_of_the_training_loop_and_modes_are_restored() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)).train()
    split = split_of(torch.arange(40) % 3)
    assert accuracy_and_proxy(net, split, device=CPU)[0] == accuracy(net, split, device=CPU)
    assert all(module.training for module in net.modules())


def test_an_empty_split_gives_zeros() -> None:
    assert accuracy_and_proxy(TwoClasses(), split_of(torch.zeros(0).long()), device=CPU) == (0.0, 0.0)
