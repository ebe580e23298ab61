import torch
from torch import nn

from spaces.cost import Cost
from spaces.counting import count_cost


def test_a_convolution_and_its_parameters_are_counted():
    # 8 x 8 positions, 3 x 3 kernels, 2 channels in and 5 out; one multiply-add is one FLOP, and the bias is free.
    net = nn.Conv2d(2, 5, 3, padding=1)
    assert count_cost(net, (2, 8, 8)) == Cost(64 * 9 * 2 * 5, 9 * 2 * 5 + 5)


def test_counting_restores_the_mode_of_every_module():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2).eval(), nn.ReLU()).train()
    net[1].eval()
    before = net[1].running_mean.clone()
    count_cost(net, (1, 4, 4))
    assert [module.training for module in net] == [True, False, True]
    assert torch.equal(net[1].running_mean, before)


def test_a_network_without_parameters_costs_nothing():
    assert count_cost(nn.Flatten(), (1, 4, 4)) == Cost(0, 0)
