import pytest
import torch
from torch import nn

from spaces.slicing.layers import fit_attributes


def replace(layer, **shapes):
    """Give a layer tensors of other shapes and fit its attributes."""
    for name, shape in shapes.items():
        old = getattr(layer, name)
        new = old.new_ones(shape)
        setattr(layer, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    fit_attributes(layer)
    return layer


def test_convolution():
    layer = replace(nn.Conv2d(8, 16, 3), weight=(10, 5, 3, 3), bias=(10,))
    assert (layer.in_channels, layer.out_channels, layer.groups) == (5, 10, 1)
    assert layer(torch.zeros(1, 5, 4, 4)).shape == (1, 10, 2, 2)


def test_grouped_convolution_keeps_its_groups():
    layer = replace(nn.Conv2d(8, 16, 3, groups=4), weight=(12, 1, 3, 3), bias=(12,))
    assert (layer.in_channels, layer.out_channels, layer.groups) == (4, 12, 4)


def test_depthwise_convolution_keeps_a_group_per_channel():
    layer = replace(nn.Conv2d(8, 8, 3, groups=8), weight=(3, 1, 3, 3), bias=(3,))
    assert (layer.in_channels, layer.out_channels, layer.groups) == (3, 3, 3)


def test_depthwise_convolution_with_several_filters_per_channel():
    layer = replace(nn.Conv2d(8, 16, 3, groups=8), weight=(6, 1, 3, 3), bias=(6,))
    assert (layer.in_channels, layer.out_channels, layer.groups) == (3, 6, 3)


def test_depthwise_convolution_cut_to_one_channel():
    layer = replace(nn.Conv2d(8, 8, 3, groups=8), weight=(1, 1, 3, 3), bias=(1,))
    assert layer(torch.zeros(1, 1, 4, 4)).shape == (1, 1, 2, 2)


@pytest.mark.parametrize(
    ("groups", "weight", "expected"), [(1, (5, 10, 2, 2), (5, 10, 1)), (8, (3, 2, 2, 2), (3, 6, 3))]
)
def test_transposed_convolution(groups, weight, expected):
    layer = replace(nn.ConvTranspose2d(8, 16, 2, groups=groups), weight=weight, bias=(expected[1],))
    assert (layer.in_channels, layer.out_channels, layer.groups) == expected
    assert layer(torch.zeros(1, expected[0], 4, 4)).shape == (1, expected[1], 5, 5)


def test_linear():
    layer = replace(nn.Linear(8, 4), weight=(3, 5), bias=(3,))
    assert (layer.in_features, layer.out_features) == (5, 3)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_with_and_without_affine(affine):
    layer = nn.BatchNorm2d(8, affine=affine)
    shapes = {"weight": (3,), "bias": (3,)} if affine else {}
    layer = replace(layer, running_mean=(3,), running_var=(3,), **shapes)
    assert layer.num_features == 3


def test_other_norms_and_prelu():
    assert replace(nn.LayerNorm(8), weight=(3,), bias=(3,)).normalized_shape == (3,)
    assert replace(nn.GroupNorm(2, 8), weight=(4,), bias=(4,)).num_channels == 4
    assert replace(nn.PReLU(8), weight=(3,)).num_parameters == 3


def test_norms_without_tensors_are_left_alone():
    net = nn.Sequential(
        nn.LayerNorm(8, elementwise_affine=False), nn.GroupNorm(2, 8, affine=False), nn.InstanceNorm2d(8)
    )
    fit_attributes(net)
    assert net[0].normalized_shape == (8,)


def test_fitting_twice_changes_nothing():
    layer = replace(nn.Conv2d(8, 16, 3, groups=8), weight=(6, 1, 3, 3), bias=(6,))
    before = dict(vars(layer))
    fit_attributes(layer)
    assert (layer.in_channels, layer.out_channels, layer.groups) == (3, 6, 3)
    assert before.keys() == vars(layer).keys()
