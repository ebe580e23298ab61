import dataclasses

import pytest
import tiny_nets as nets
import torch

from pruning.rewriting.narrowing import narrow_space, space_of, stages
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from spaces.counting import count_cost
from spaces.errors import SpaceError
from spaces.space import ModelSpec, SpaceConfig
from spaces.tracing.tracer import trace
from spaces.widths import Widths
from spaces.zoo.models import build


def selection_of(space, share: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(group.width, generator=generator) for group in space.variable}
    widths = {g.name: max(g.lowest, int(share * g.width) // g.divisor * g.divisor) for g in space.variable}
    return dict(select_channels(space, scores, widths))


@pytest.mark.parametrize("make", nets.ALL)
def test_the_narrow_space_is_that_of_the_narrow_net(make) -> None:
    net = make().eval()
    image = torch.zeros(1, *nets.IMAGE)
    space = trace(net, image)
    selection = selection_of(space, 0.7)
    ours, traced = narrow_space(space, selection), trace(slice_channels(net, space, selection), image)
    assert {group.name: group.width for group in ours.groups} == {group.name: group.width for group in traced.groups}
    for name, dims in traced.axes.items():
        for dim, ids in dims.items():
            assert ours.axes[name][dim].tolist() == ids.tolist()


@pytest.mark.parametrize("make", nets.ALL)
def test_cutting_twice_gives_a_net_that_costs_what_the_dense_model_says(make) -> None:
    net = make().eval()
    space = trace(net, torch.zeros(1, *nets.IMAGE))
    first = selection_of(space, 0.8)
    once, narrower = slice_channels(net, space, first), narrow_space(space, first)
    second = selection_of(narrower, 0.6)
    twice = slice_channels(once, narrower, second)
    twice(torch.randn(2, *nets.IMAGE))
    widths = {group.name: len(second[group.name]) for group in space.variable}
    assert count_cost(twice, nets.IMAGE) == space.cost(widths)


def test_channels_keep_their_weights_through_two_cuts() -> None:
    net = nets.Concat().eval()
    space = trace(net, torch.zeros(1, *nets.IMAGE))
    first = {"right": torch.tensor([0, 2, 3, 5]), "join": torch.tensor([1, 4, 6])}
    second = {"right": torch.tensor([1, 3]), "join": torch.tensor([0, 2])}
    twice = slice_channels(slice_channels(net, space, first), narrow_space(space, first), second)
    assert torch.equal(twice.join.weight, net.join.weight[[1, 6]][:, [0, 1, 2, 3, 4 + 2, 4 + 5]])


def test_a_grouped_convolution_stays_one_when_a_group_of_it_has_one_input_left() -> None:
    net = nets.Grouped().eval()
    image = torch.randn(1, *nets.IMAGE)
    space = trace(net, image)
    for widths in ({"first": 4}, {"grouped": 20}, {"grouped": 8}):  # as many groups as inputs, as if it were depthwise
        scores = {group.name: torch.arange(group.width) for group in space.variable}
        selection = select_channels(space, scores, widths)
        net, space = slice_channels(net, space, selection), narrow_space(space, selection)
    assert (net.grouped.groups, net.grouped.in_channels, net.grouped.out_channels) == (4, 4, 8)
    assert net(image).shape == (1, 5)


def test_all_groups_shrink_by_a_constant_factor() -> None:
    net = build(ModelSpec("resnet20", 10, (3, 32, 32)))
    space = trace(net, torch.zeros(1, 3, 32, 32))
    goal = Widths({group.name: group.width // 8 for group in space.variable})
    found = [{space.by_name[name].width / width for name, width in widths.items()} for widths in stages(space, goal, 3)]
    assert found == [{2.0}, {4.0}, {8.0}]


def test_widths_in_between_are_legal_and_the_last_are_exact() -> None:
    net = nets.Grouped()
    space = trace(net, torch.zeros(1, *nets.IMAGE), SpaceConfig(divisor=4))
    goal = space.smallest
    for widths in stages(space, goal, 4):
        space.check(widths)
        assert all(width >= goal[name] for name, width in widths.items())
    assert stages(space, goal, 4)[-1] == goal


@pytest.mark.parametrize("seed", [1, 3])
def test_a_net_with_repeats_and_splits_is_cut_again_from_its_widths_alone(seed) -> None:
    class Repeating(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(4, 6, 1)
            self.c, self.fc = torch.nn.Conv2d(22, 8, 1), torch.nn.Linear(8, 5)

        def forward(self, x):
            x = self.a(x)
            left, right = x.chunk(2, 1)
            return self.fc(self.c(torch.cat([x, self.b(right), -x], 1)).mean((2, 3)))

    net = Repeating().eval()
    space = trace(net, torch.zeros(1, *nets.IMAGE))
    first = {"a": torch.tensor([0, seed, 4, 7]), "b": torch.tensor([seed, 4])}
    ours, known = space_of(space, Widths({"a": 4, "b": 2, "c": 8})), narrow_space(space, first)
    assert ours.groups == known.groups
    for name, dims in known.axes.items():
        assert {dim: ids.tolist() for dim, ids in dims.items()} == {d: i.tolist() for d, i in ours.axes[name].items()}


def test_a_net_whose_layers_disagree_about_the_order_cannot_be_cut_again() -> None:
    space = trace(nets.Residual().eval(), torch.zeros(1, *nets.IMAGE))
    turned = {**space.axes, "inner.weight": {**space.axes["inner.weight"], 1: space.axes["inner.weight"][1][::-1]}}
    with pytest.raises(SpaceError, match=r"inner\.weight.*another order"):
        space_of(dataclasses.replace(space, axes=turned), Widths({"stem": 4, "inner": 6}))
