"""The contract of all pruning methods; a new method is tested once it has a line in METHODS."""

import dataclasses

import pytest
import torch
from tiny_nets import Decoder, space_of
from torch import Tensor, nn
from torch.nn import functional

from pruning.base import METHODS, Goal
from pruning.traits import yields_intermediates
from runners.evaluation.context import TrialContext
from runners.evaluation.intermediate import short_of
from spaces.budget import Budget
from spaces.counting import count_cost
from spaces.space import SearchSpace, uniform_ratios
from spaces.widths import Widths

IMAGE = (1, 8, 8)


class Residual(nn.Module):
    """A residual stream with two writers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return self.head(functional.relu(x + y).mean(dim=(2, 3)))


class Concatenating(nn.Module):
    """Two concatenated groups, then flattened maps."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(1, 10, 1)
        self.norm = nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8 * 4 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(torch.cat([self.left(x), self.right(x)], dim=1)))
        return self.head(functional.relu(self.last(x)).flatten(1))


class Repeating(nn.Module):
    """Halves, a depthwise layer with two filters per channel, and average beside maximum pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.part, self.join = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(14, 10, 1)
        self.doubled, self.slope = nn.Conv2d(10, 20, 3, padding=1, groups=10), nn.PReLU()
        self.head = nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = functional.relu(self.norm(self.first(x))).chunk(2, 1)
        x = torch.cat([left, right, functional.relu(self.part(right))], 1)
        x = self.slope(self.doubled(functional.relu(self.join(x))))
        pooled = functional.adaptive_avg_pool2d(x, 1), functional.adaptive_max_pool2d(x, 1)
        return self.head(torch.cat(pooled, 1).flatten(1))


def _decoder() -> nn.Module:
    return Decoder(inputs=1, classes=4)


def _depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Conv2d(8, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4),
    )  # fmt: skip


def _grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4),
    )  # fmt: skip


NETS = {"residual": Residual, "concatenating": Concatenating, "depthwise": _depthwise, "grouped": _grouped}


@pytest.fixture(params=sorted(NETS))
def make(request):
    return NETS[request.param]


@pytest.fixture
def net(make) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.fixture
def space(make) -> SearchSpace:
    return space_of(make, IMAGE)


@pytest.fixture(params=sorted(METHODS))
def method(request):
    return METHODS[request.param]()


@pytest.fixture
def context(tiny_search_context):
    """Return a function that builds the context of a trial, over 64 small images of 4 classes."""

    def build(seed: int = 0, epochs: int = 1) -> TrialContext:
        return TrialContext(
            tiny_search_context.data, dataclasses.replace(tiny_search_context.train, epochs=epochs), seed
        )

    return build


def _fit(space: SearchSpace, share: float) -> Widths:
    return space.fit(uniform_ratios(space), [Budget("flops", int(share * space.dense_cost.flops))])


def _run(method, net: nn.Module, space: SearchSpace, goal: Goal, context) -> list:
    context.prepared = method.prepare(net, space, context)
    return list(method.run(net, space, goal, context))


def _goal(method, space: SearchSpace, share: float) -> Goal:
    """Return uniform widths at a share of the dense FLOPs, or a budget of that share if the method takes no widths."""
    if method.takes_widths:
        return Goal(widths=_fit(space, share))
    return Goal(budgets=(Budget("flops", int(share * space.dense_cost.flops)),))


def test_widths_that_are_asked_for_are_exact_and_cost_what_the_model_says(net, space, method, context) -> None:
    if not method.takes_widths:
        pytest.skip("works from budgets only")
    widths = _fit(space, 0.5)
    snapshots = _run(method, net, space, Goal(widths=widths), context())
    for snapshot in snapshots:
        space.check(snapshot.widths)
        promised = snapshot.cost or space.cost(snapshot.widths)
        assert count_cost(snapshot.net, space.input_shape) == promised  # by fvcore, by the cost model
    assert snapshots[-1].widths == widths


def test_channels_that_stand_several_times_on_an_axis_are_narrowed(method, context) -> None:
    torch.manual_seed(0)
    net, space = Repeating().eval(), space_of(Repeating, IMAGE)
    assert [group.name for group in space.variable] == ["first", "part", "join"]
    last = _run(method, net, space, _goal(method, space, 0.6), context())[-1]
    assert count_cost(last.net, space.input_shape) == (last.cost or space.cost(last.widths))


def test_transposed_convolutions_and_parameters_of_no_layer_are_narrowed(method, context) -> None:
    torch.manual_seed(0)
    net, space = _decoder().eval(), space_of(_decoder, IMAGE)
    assert [group.name for group in space.variable] == ["top", "bottom", "up1", "kernel", "up2"]
    share = 0.6 if method.takes_widths else 0.95  # kse shares the kernels of one layer here
    last = _run(method, net, space, _goal(method, space, share), context())[-1]
    assert count_cost(last.net, space.input_shape) == (last.cost or space.cost(last.widths))


def test_the_dense_net_is_not_changed_and_the_output_shape_is_kept(net, space, method, context) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    last = _run(method, net, space, _goal(method, space, 0.4), context())[-1]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    image = torch.zeros(1, *IMAGE)
    assert last.net.eval()(image).shape == net(image).shape
    assert not any(module.training for module in net.modules())
    shared = {parameter.data_ptr() for parameter in net.parameters()}
    assert not any(parameter.data_ptr() in shared for parameter in last.net.parameters())


def test_the_same_seed_gives_the_same_net(net, space, method, context) -> None:
    goal = _goal(method, space, 0.5)
    first, second = (_run(method, net, space, goal, context(seed=3))[-1].net for _ in range(2))
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_budgets_alone_are_met(net, space, method, context) -> None:
    if not method.finds_widths:
        pytest.skip("takes widths from the search only")
    budgets = (Budget.parse("60%"), Budget("params", int(0.7 * space.dense_cost.params)))
    snapshots = _run(method, net, space, Goal(budgets=budgets), context())
    for snapshot in snapshots:
        space.check(snapshot.widths)
        counted = count_cost(snapshot.net, space.input_shape)
        assert counted == (snapshot.cost or space.cost(snapshot.widths))
    assert counted.flops <= 0.6 * space.dense_cost.flops
    assert counted.params <= budgets[1].limit


def test_snapshots_follow_the_epochs(net, space, method, context) -> None:
    snapshots = _run(method, net, space, _goal(method, space, 0.5), context(epochs=2))
    epochs = [snapshot.epoch for snapshot in snapshots]
    assert epochs == sorted(epochs)
    assert epochs[-1] == 2


NARROWING = {  # settings at which methods yield intermediate networks in 8 epochs of 4 batches
    "abfp": {"iterations": 3},
    "aofp": {"theta": 0.3, "scope": "all", "search_share": 0.5, "half_batches": 2, "warm_up_batches": 0},
    "di": {"gradual_epochs": 3},
}


def test_a_method_says_whether_it_yields_intermediate_networks(method, context) -> None:
    torch.manual_seed(0)
    net, method = Residual().eval(), dataclasses.replace(method, **NARROWING.get(method.name, {}))
    space = space_of(Residual, IMAGE)
    limited = Goal(budgets=(Budget("flops", int(0.3 * space.dense_cost.flops)),))
    goals = ([limited] if method.finds_widths else []) + [_goal(method, space, 0.3)]
    yielded = [(goal, snapshot) for goal in goals for snapshot in _run(method, net, space, goal, context(epochs=8))]
    assert yields_intermediates(method, 8) == any(short_of(goal, snapshot, space) for goal, snapshot in yielded)
    assert not yields_intermediates(method, 0)
