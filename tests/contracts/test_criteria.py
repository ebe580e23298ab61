"""The contract of all criteria; a new criterion is tested once it has a line in CRITERIA."""

import dataclasses

import pytest
import tiny_nets as nets
import torch
from torch import nn

from pruning.base import CRITERIA, PruningError
from spaces.space import SearchSpace
from spaces.tracing.tracer import trace


@dataclasses.dataclass
class ContextStub:
    """Calibration images, their loss and a seed: the only parts of a context that a criterion may use."""

    seed: int = 0
    prepared: None = None
    device: torch.device = torch.device("cpu")
    classifies: bool = True

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    def calibration_batches(self, images: int):
        generator = torch.Generator().manual_seed(7)
        for _ in range(2):
            yield torch.randn(10, *nets.IMAGE, generator=generator), torch.arange(10) % 5


@pytest.fixture(params=nets.ALL)
def make(request):
    return request.param


@pytest.fixture
def net(make) -> nn.Module:
    torch.manual_seed(0)
    return make().train()


@pytest.fixture
def space(make) -> SearchSpace:
    return nets.space_of(make)


@pytest.fixture(params=sorted(CRITERIA))
def criterion(request):
    return CRITERIA[request.param]()


def test_every_variable_group_has_a_finite_score_per_channel(net, space, criterion) -> None:
    scores = criterion.scores(net, space, ContextStub())
    assert {name: tensor.shape for name, tensor in scores.items()} == {g.name: (g.width,) for g in space.variable}
    assert all(torch.isfinite(tensor).all() and (tensor >= 0).all() for tensor in scores.values())


def test_the_net_is_left_as_it_was(net, space, criterion) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    criterion.scores(net, space, ContextStub())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(module.training and not module._forward_hooks for module in net.modules())


def test_the_same_seed_gives_the_same_scores(net, space, criterion) -> None:
    first, second = (criterion.scores(net, space, ContextStub(seed=3)) for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_scores_depend_on_the_seed_only_where_the_criterion_says_so(net, space, criterion) -> None:
    first, second = (criterion.scores(net, space, ContextStub(seed=seed)) for seed in (3, 4))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items()) != criterion.seeded


@pytest.mark.parametrize("what", ["everything", "one filter"])
def test_filters_of_zero_have_finite_scores(net, space, criterion, what) -> None:
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight[: 1 if what == "one filter" else None] = 0
    scores = criterion.scores(net, space, ContextStub())
    assert all(torch.isfinite(tensor).all() for tensor in scores.values())


def test_a_layer_of_one_channel_is_scored_or_left_out(criterion) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU(), nn.Conv2d(1, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(6, 5)).eval()  # fmt: skip
    scores = criterion.scores(net, trace(net, torch.zeros(1, *nets.IMAGE)), ContextStub())
    assert {name: tensor.shape for name, tensor in scores.items()} == {"2": (6,)}
    assert torch.isfinite(scores["2"]).all()


def test_without_calibration_images_there_is_an_error_or_they_are_not_needed(net, space, criterion) -> None:
    context = ContextStub()
    context.calibration_batches = lambda images: iter(())
    try:
        scores = criterion.scores(net, space, context)
        found = "finite" if all(torch.isfinite(tensor).all() for tensor in scores.values()) else "not finite"
    except PruningError as error:
        found = str(error)
    assert found == "finite" or "no calibration images" in found
