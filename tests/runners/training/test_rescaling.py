"""Rescaled weights: the same network, the norm of fresh layers, and larger steps."""

import copy
import dataclasses

import pytest
import torch
from tiny_trials import finish_segment, trial
from torch import Tensor, nn
from torch.nn import functional

from pruning.checkpoint import from_bytes
from runners.evaluation.context import SearchContext
from runners.training.rescaling import rescale
from runners.trial import TrainingSegment
from spaces.space import ModelSpec
from spaces.zoo.models import build

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def grown(net: nn.Module) -> nn.Module:
    """Return the network with statistics of its own and weights of three times their size."""
    net.train()
    for _ in range(3):
        net(IMAGES)
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            if name.endswith("weight") and tensor.ndim > 1:
                tensor.mul_(3)
    for _ in range(3):
        net(IMAGES)
    return net.eval()


class ByName(nn.Module):
    """A BatchNorm that gets its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(input=self.conv(images)).mean((2, 3))  # type: ignore[no-any-return]


class TwoReaders(nn.Module):
    """A convolution whose output a BatchNorm and an addition read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return (self.norm(maps) + maps).mean((2, 3))


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_a_rescaled_network_computes_the_same_with_weights_of_fresh_norm(name: str) -> None:
    torch.manual_seed(0)
    net = grown(build(ModelSpec(name, 5, (3, 16, 16))))
    before = net(IMAGES).detach()
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    last = next(module for module in reversed(list(net.modules())) if isinstance(module, nn.Linear)).weight.clone()
    assert rescale(net, IMAGES[:1]) == len(convolutions)  # all have a BatchNorm behind them
    assert torch.allclose(net(IMAGES), before, atol=1e-4 * before.abs().max().item())
    for layer in convolutions:
        channels, groups = (layer.in_channels, layer.out_channels), layer.groups
        fresh = [nn.Conv2d(*channels, layer.kernel_size, groups=groups).weight.norm() for _ in range(20)]
        assert layer.weight.norm().item() == pytest.approx(torch.stack(fresh).mean().item(), rel=0.1)
    assert torch.equal(next(m for m in reversed(list(net.modules())) if isinstance(m, nn.Linear)).weight, last)


def test_a_step_turns_the_weights_more() -> None:
    torch.manual_seed(0)
    net = grown(
        nn.Sequential(nn.Conv2d(3, 6, 3, bias=True), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    )
    scaled = copy.deepcopy(net)
    assert rescale(scaled, IMAGES) == 1
    factor = (scaled[0].weight.norm() / net[0].weight.norm()).item()
    turned = []
    for each in (net, scaled):
        each.train()
        functional.cross_entropy(each(IMAGES), torch.tensor([0, 1, 2, 3])).backward()
        turned.append((each[0].weight.grad.norm() / each[0].weight.norm()).item())
    assert turned[1] / turned[0] == pytest.approx(1 / factor**2, rel=1e-2)


@pytest.mark.parametrize("kind", [TwoReaders, ByName])
def test_a_layer_that_something_else_reads_too_or_whose_reader_is_not_seen_keeps_its_weights(
    kind: type[nn.Module],
) -> None:
    torch.manual_seed(0)
    net = grown(kind())
    before = copy.deepcopy(net.state_dict())
    assert rescale(net, IMAGES) == 0
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("setting", "completes", "is_fresh"),
    [("final", True, True), ("final", False, False), ("none", True, False), ("all", False, True)],
)
def test_the_setting_says_which_trainings_begin_with_rescaled_weights(
    tiny_search_context: SearchContext, setting: str, completes: bool, is_fresh: bool
) -> None:
    train = dataclasses.replace(tiny_search_context.train, lr=1e-9, rescale_weights=setting)
    context = dataclasses.replace(tiny_search_context, train=train)
    first = finish_segment(context, trial(), TrainingSegment(1))
    result = finish_segment(context, trial(), TrainingSegment(1, 1, first.checkpoint, final=True, completes=completes))
    assert result.checkpoint is not None
    weight = from_bytes(result.checkpoint, context.net)[0].weight
    assert (weight.norm().item() == pytest.approx((len(weight) / 3) ** 0.5, rel=1e-3)) is is_fresh
