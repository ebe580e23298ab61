import random

import pytest
import tiny_nets as nets
import torch
import torchvision
from torch import nn
from traced_zoo import zoo_space

from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from spaces.cost import Cost
from spaces.counting import count_cost
from spaces.errors import TraceError
from spaces.space import ModelSpec, SearchSpace, SpaceConfig
from spaces.tracing.tracer import trace
from spaces.widths import Widths
from spaces.zoo.models import build

CIFAR = ("resnet20", "resnet56", "resnet110", "cifar_resnet18", "cifar_vgg16_bn", "densenet40", "lenet5")
NO_CNN = ("vit_", "swin_", "maxvit")
# The smallest with every kind of block; the others are deeper or wider, and many take over ten seconds.
KINDS = {"alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5"}
KINDS |= {"mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50"}
KINDS |= {"shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1"}
TORCHVISION = [n for n in torchvision.models.list_models(module=torchvision.models) if not n.startswith(NO_CNN)]


def random_widths(space: SearchSpace, seed: int) -> Widths:
    rng = random.Random(seed)
    return Widths({g.name: min(g.lowest + rng.randint(0, g.steps) * g.divisor, g.ceiling) for g in space.variable})


def narrow(net: nn.Module, space: SearchSpace, widths: Widths) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    scores = {g.name: torch.rand(g.width, generator=generator) for g in space.variable}
    return slice_channels(net, space, select_channels(space, scores, widths))


def assert_exact(net: nn.Module, space: SearchSpace, vectors: int) -> None:
    for seed in range(vectors):
        widths = random_widths(space, seed)
        assert count_cost(narrow(net, space, widths), space.input_shape) == space.cost(widths)


@pytest.mark.parametrize("make", nets.ALL)
def test_cost_of_tiny_nets_equals_fvcore_on_the_sliced_net(make: type[nn.Module]) -> None:
    assert_exact(make(), nets.space_of(make), vectors=5)


@pytest.mark.parametrize("name", CIFAR)
def test_cost_of_cifar_nets_equals_fvcore_on_the_sliced_net(name: str) -> None:
    assert_exact(build(ModelSpec(name, 10, (3, 32, 32))), zoo_space(name, 32), vectors=2)


@pytest.mark.parametrize("name", [n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in TORCHVISION])
def test_cost_of_torchvision_nets_equals_fvcore_on_the_sliced_net(name: str) -> None:
    side = 96 if name == "inception_v3" else 64
    assert_exact(build(ModelSpec(name, 10, (3, side, side))), zoo_space(name, side), vectors=1)


def test_resnet50_costs_what_fvcore_counts_at_224() -> None:
    space = zoo_space("resnet50", 224, 1000)
    # The last BatchNorm of a block of the first stage reads and makes 256 channels at 56 x 56 beside the shortcut.
    assert space.dense_cost == Cost(4_111_512_576, 25_557_032, 3 * 4 * 256 * 56 * 56)
    assert len(space.variable) == 37


def test_residual_branches_share_one_group() -> None:
    space = trace(nets.Residual(), torch.empty(1, *nets.IMAGE))
    stream, inner, output = space.groups
    assert (stream.name, stream.width, stream.producers) == ("stem", 8, ("stem", "outer"))
    assert (inner.name, inner.width, inner.consumers) == ("inner", 6, ("outer",))
    assert (output.name, output.fixed) == ("fc", "network output")
    # By hand: 8x8 positions, 3x3 kernels, BatchNorm 2 per element, pooling 1 per element, linear 8 x 5.
    assert space.cost({"stem": 4, "inner": 2}) == Cost(
        64 * (27 * 4 + 9 * 4 * 2 + 9 * 2 * 4) + 2 * 64 * 4 + 64 * 4 + 4 * 5,
        27 * 4 + 2 * 4 + (9 * 4 * 2 + 2) + (9 * 2 * 4 + 4) + (4 * 5 + 5),
        4 * 64 * (4 + 4 + 4),  # the addition: two operands and the sum, 4 channels each
    )


def test_concatenated_branches_are_groups_of_their_own() -> None:
    space = trace(nets.Concat(), torch.empty(1, *nets.IMAGE))
    assert [(g.name, g.width) for g in space.variable] == [("left", 4), ("right", 6), ("join", 8)]
    assert space.axes["fc.weight"][1].tolist() == [c for c in range(10, 18) for _ in range(16)]


def test_grouped_convolutions_keep_their_groups() -> None:
    space = trace(nets.Grouped(), torch.empty(1, *nets.IMAGE))
    first, grouped = space.by_name["first"], space.by_name["grouped"]
    assert (first.conv_groups, first.divisor, grouped.conv_groups) == (4, 4, 4)
    assert [w for w in range(1, 17) if first.legal(w)] == [4, 8, 12, 16]
    net = narrow(nets.Grouped(), space, Widths({"first": 8, "grouped": 12, "last": 3}))
    assert net.get_submodule("grouped").weight.shape == (12, 2, 3, 3)  # type: ignore[union-attr]


def test_depthwise_and_squeeze_excitation_follow_their_stream() -> None:
    space = trace(nets.Depthwise(), torch.empty(1, *nets.IMAGE))
    assert space.by_name["expand"].producers == ("expand", "depthwise", "excite")


def test_a_layer_used_twice_ties_its_input_to_its_output() -> None:
    space = trace(nets.Twice(), torch.empty(1, *nets.IMAGE))
    assert [g.name for g in space.variable] == ["stem"]
    assert set(space.by_name["stem"].producers) == {"stem", "shared"}


def test_a_net_that_cannot_be_followed_names_the_layer() -> None:
    with pytest.raises(TraceError, match=r"view from \(1, 8, 8, 8\)"):
        trace(nets.Shuffle(), torch.empty(1, *nets.IMAGE))


def test_channels_that_are_shuffled_vary_in_blocks_until_too_few_are_left() -> None:
    space = zoo_space("shufflenet_v2_x0_5", 64)
    assert "stage2.0.branch2.0" in space.full
    # Three shuffles and halves after one another let 48 channels, two by two the same, lie in 8 blocks.
    stream = space.by_name["stage2.0.branch1.2"]
    assert (stream.width, stream.conv_groups, stream.fixed) == (24, 8, "")
    (fixed,) = [layer for layer in space.layers_fixed if layer.name == "stage3.0.branch1.2"]
    assert fixed.reason == "chunk in stage3.6 cannot be followed"


def test_a_net_that_fails_on_the_image_is_a_trace_error() -> None:
    with pytest.raises(TraceError, match="forward pass"):
        trace(nets.Concat(), torch.empty(1, 3, 16, 16))


def test_tracing_leaves_the_network_alone() -> None:
    net = nets.Residual().train()
    net.stem.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trace(net, torch.empty(1, *nets.IMAGE))
    assert net.training
    assert not net.stem.weight.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not net.stem._forward_hooks


def test_config_bounds_are_applied() -> None:
    space = trace(nets.Residual(), torch.empty(1, *nets.IMAGE), SpaceConfig(skip=("inner",), floor=0.5))
    assert [g.name for g in space.variable] == ["stem"]
    assert space.by_name["inner"].fixed == "kept by --skip"
    assert space.by_name["stem"].lowest == 4
    assert set(space.full) == {"stem"}
