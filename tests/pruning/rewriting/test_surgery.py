import copy

import pytest
import tiny_nets as nets
import torch
from torch import Tensor, nn

from pruning.base import PruningError
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from spaces.counting import count_cost
from spaces.space import SearchSpace
from spaces.tracing.tracer import trace


def half(space: SearchSpace, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    widths = {g.name: max(g.conv_groups, g.width // 2) for g in space.variable}
    return dict(select_channels(space, {g.name: torch.rand(g.width, generator=rng) for g in space.variable}, widths))


def silence(net: nn.Module, space: SearchSpace, selection: dict[str, Tensor]) -> nn.Module:
    """Zero the weights that read the removed channels: the masked net then computes the same as the narrow one."""
    masked = copy.deepcopy(net)
    tensors = dict(masked.named_parameters())
    for name, dims in space.axes.items():
        if 1 not in dims or name not in tensors:
            continue
        for group_name, kept in selection.items():
            group = space.by_name[group_name]
            gone = set(range(group.start, group.start + group.width)) - {group.start + int(k) for k in kept}
            columns = torch.tensor([int(c) in gone for c in dims[1]])
            weight = tensors[name].data
            if name in space.grouped:
                groups = space.grouped[name]
                gone_from = columns.view(groups, 1, -1, 1, 1).expand(
                    -1, weight.shape[0] // groups, -1, *weight.shape[2:]
                )
                weight[gone_from.reshape(weight.shape)] = 0
            else:
                weight[:, columns] = 0
    return masked


@pytest.mark.parametrize("make", [nets.Residual, nets.Concat, nets.Depthwise, nets.Grouped])
def test_the_narrow_net_computes_what_the_masked_net_does(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = make().eval()
    space = trace(net, torch.empty(1, *nets.IMAGE))
    selection = half(space)
    images = torch.randn(4, *nets.IMAGE)
    narrow = slice_channels(net, space, selection)
    torch.testing.assert_close(narrow(images), silence(net, space, selection)(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", nets.ALL)
def test_the_input_model_is_untouched_and_the_narrow_net_trains(make: type[nn.Module]) -> None:
    net = make()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    space = trace(net, torch.empty(1, *nets.IMAGE))
    narrow = slice_channels(net, space, half(space)).train()
    narrow(torch.randn(4, *nets.IMAGE)).sum().backward()
    with torch.no_grad():
        for parameter in narrow.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_layer_attributes_match_their_weights() -> None:
    net = nets.Depthwise()
    space = trace(net, torch.empty(1, *nets.IMAGE))
    narrow = slice_channels(net, space, half(space))
    depthwise = narrow.get_submodule("depthwise")
    assert isinstance(depthwise, nn.Conv2d)
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (6, 6, 6)
    assert narrow.get_submodule("bn").num_features == 6
    assert narrow.get_submodule("fc").in_features == 3


def test_kept_channels_carry_their_own_weights() -> None:
    net = nets.Residual()
    space = trace(net, torch.empty(1, *nets.IMAGE))
    narrow = slice_channels(net, space, {"stem": torch.tensor([1, 4, 6])})
    assert torch.equal(narrow.get_parameter("stem.weight"), net.stem.weight[[1, 4, 6]])
    assert torch.equal(narrow.get_parameter("inner.weight"), net.inner.weight[:, [1, 4, 6]])
    assert torch.equal(narrow.get_buffer("bn.running_var"), net.bn.running_var[[1, 4, 6]])
    assert count_cost(narrow, nets.IMAGE) == space.cost({"stem": 3})


def test_flattened_channels_keep_all_their_positions() -> None:
    net = nets.Concat()
    space = trace(net, torch.empty(1, *nets.IMAGE))
    narrow = slice_channels(net, space, {"join": torch.tensor([0, 5])})
    columns = [*range(16), *range(80, 96)]
    assert torch.equal(narrow.get_parameter("fc.weight"), net.fc.weight[:, columns])


def test_shared_weights_stay_shared() -> None:
    net = nets.Concat()
    net.right = nn.Conv2d(3, 4, 1)
    net.join = nn.Conv2d(8, 8, 1)
    net.right.weight = net.left.weight
    space = trace(net, torch.empty(1, *nets.IMAGE))
    narrow = slice_channels(net, space, half(space))
    assert narrow.get_parameter("left.weight") is narrow.get_parameter("right.weight")


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"stem": torch.tensor([], dtype=torch.int64)}, "at least one"),
        ({"stem": torch.tensor([0, 8])}, r"\[0, 8\)"),
        ({"stem": torch.tensor([3, 1])}, "ascending"),
        ({"nose": torch.tensor([0])}, "no group"),
    ],
)
def test_selections_that_cannot_be_cut_are_named(selection: dict[str, Tensor], message: str) -> None:
    net = nets.Residual()
    space = trace(net, torch.empty(1, *nets.IMAGE))
    with pytest.raises(PruningError, match=message):
        slice_channels(net, space, selection)


def test_groups_of_a_grouped_convolution_must_stay_equal() -> None:
    net = nets.Grouped()
    space = trace(net, torch.empty(1, *nets.IMAGE))
    with pytest.raises(PruningError, match="4 conv groups"):
        slice_channels(net, space, {"first": torch.tensor([0, 1, 2, 4])})


def test_a_space_of_another_network_is_refused() -> None:
    space = trace(nets.Residual(), torch.empty(1, *nets.IMAGE))
    other = nets.Residual()
    other.stem = nn.Conv2d(3, 10, 3, padding=1, bias=False)
    with pytest.raises(PruningError, match="slice the network that was traced"):
        slice_channels(other, space, half(space))
