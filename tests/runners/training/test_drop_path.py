"""Drop-path: rates rise with the depth, and branches are left out in training alone."""

import dataclasses

import pytest
import torch
from tiny_training import CONFIG, two_colours
from torch import nn
from torchvision.ops import StochasticDepth

from runners.training.drop_path import has_drop_path, set_drop_path
from runners.training.loop import Training
from runners.training.run import TrainingRun


class Branch(nn.Module):
    def __init__(self, place: nn.Module) -> None:
        super().__init__()
        self.conv, self.drop_path = nn.Conv2d(3, 3, 1), place

    def forward(self, x):
        return x + self.drop_path(self.conv(x))


def branches(*places: nn.Module) -> nn.Sequential:
    return nn.Sequential(*map(Branch, places), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


def rates(net: nn.Module) -> list[float]:
    return [module.p for module in net.modules() if isinstance(module, StochasticDepth)]


def test_rates_rise_with_the_depth_and_zero_leaves_those_of_the_network() -> None:
    net = branches(StochasticDepth(0.5, "batch"), nn.Identity(), StochasticDepth(0.5, "row"))
    set_drop_path(net, 0.0)
    assert rates(net) == [0.5, 0.5]
    set_drop_path(net, 0.4)
    assert rates(net) == pytest.approx([0.0, 0.2, 0.4])  # the Identity stood where timm has a DropPath
    assert has_drop_path(net)
    assert not has_drop_path(nn.Sequential(nn.Identity(), nn.Conv2d(3, 3, 1)))


def test_a_training_leaves_branches_out_and_evaluation_does_not() -> None:
    torch.manual_seed(0)
    net, image = branches(nn.Identity(), nn.Identity()), torch.randn(1, 3, 6, 6)
    expected = net.eval()(image)
    config = dataclasses.replace(CONFIG, drop_path=0.9)
    Training(net, two_colours(), config, TrainingRun(1, 0.1, seed=0, device=torch.device("cpu")))
    assert torch.equal(net.eval()(image), expected)
    inner = net[0](image)
    with torch.no_grad():
        outputs = [net[1].train()(inner) for _ in range(50)]
    left_out = sum(torch.equal(output, inner) for output in outputs)
    assert 35 <= left_out <= 50  # of 50, at a rate of 0.9
    assert rates(net) == [0.0, 0.9]
