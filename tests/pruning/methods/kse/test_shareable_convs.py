import numpy as np
import pytest
import tiny_nets
import torch
from torch import nn

from pruning.methods.kse.shareable_convs import find_shareable_convs, ids_of, needed_ids
from spaces.tracing.tracer import trace


def chain():
    """Return a stem of 8 channels, a layer that reads them and writes 6, and a layer that reads these."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(64, 2)
    )


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        (chain, {"2", "4"}),
        (tiny_nets.Residual, {"inner", "outer"}),
        (tiny_nets.Concat, {"join"}),  # both branches read the image
        (tiny_nets.Depthwise, {"squeeze", "excite", "project"}),
        (tiny_nets.Grouped, {"grouped", "last"}),
        (tiny_nets.Twice, {"shared"}),
        (tiny_nets.ChannelsLast, set()),
    ],
)
def test_stem_depthwise_and_linear_layers_are_not_shareable(factory, names):
    net = factory().eval()
    assert {conv.name for conv in find_shareable_convs(net, trace(net, torch.zeros(1, 3, 8, 8)))} == names
    assert not any(module._forward_hooks for module in net.modules())


def test_a_net_in_training_mode_keeps_its_mode_and_running_statistics():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten())
    net = nn.Sequential(*net, nn.Linear(96, 2))
    space = trace(net, torch.zeros(1, 3, 8, 8))
    net.train()[2].eval()
    net[1].running_mean.fill_(7.0)
    assert find_shareable_convs(net, space)
    assert net[1].running_mean.tolist() == [7.0] * 8
    assert net[1].num_batches_tracked == 0
    assert [module.training for module in net] == [True, True, False, True, True, True]


def test_a_convolution_that_classifies_is_not_shareable():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))
    net = nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert [conv.name for conv in find_shareable_convs(net, trace(net, torch.zeros(1, 3, 8, 8)))] == ["2"]


def test_other_padding_and_shared_weights_are_not_shareable():
    net = chain().eval()
    net[2] = nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect")
    net[4] = nn.Conv2d(6, 6, 1)
    net.insert(5, nn.Conv2d(6, 6, 1))
    net[5].weight = net[4].weight
    net[7] = nn.Linear(6 * 36, 2)
    assert find_shareable_convs(net, trace(net, torch.zeros(1, 3, 8, 8))) == ()


def test_positions_count_every_use():
    net = tiny_nets.Twice().eval()
    (shared,) = find_shareable_convs(net, trace(net, torch.zeros(1, 3, 8, 8)))
    assert (shared.positions, shared.area) == (2 * 64, 9)


def test_channels_that_only_shareable_convolutions_read_are_not_needed():
    net = chain().eval()
    space = trace(net, torch.zeros(1, 3, 8, 8))
    convs = find_shareable_convs(net, space)
    needed = needed_ids(net, space, convs)
    by_group = {group.name: needed[ids_of([group])] for group in space.variable}
    assert not by_group["0"].any()
    assert not by_group["2"].any()
    assert by_group["4"].all()  # the linear layer reads them
    assert needed_ids(net, space, convs[:1])[ids_of([space.by_name["2"]])].all()


def test_channel_ids_of_groups_follow_each_other():
    space = trace(chain().eval(), torch.zeros(1, 3, 8, 8))
    first, second, *_ = space.groups
    assert np.array_equal(ids_of([first, second]), np.arange(first.start, second.start + second.width))
