import copy

import pytest
import tiny_nets
import torch
from torch import nn
from torch.nn import functional

from pruning.methods.aofp.output_error import ScoringPath, find_consumers
from spaces.tracing.tracer import trace


def chain(*middle):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3, padding=1), *middle, nn.Flatten(), nn.Linear(6 * 16, 4)
    return nn.Sequential(*layers).double().train()


def traced(net):
    return trace(copy.deepcopy(net).float(), torch.zeros(1, 1, 4, 4))


def scored(net, channels, images, group=0):
    """Return the relative output errors at the consumers of a group when these of its channels are hidden."""
    space = traced(net)
    path = ScoringPath(net, find_consumers(net, space, space.variable[group].consumers))
    path.hide([(space.variable[group], [torch.tensor(channels)])])
    path.attach()
    net(images)
    path.detach()
    return {name: error for name, (error,) in path.relative_errors().items()}


@pytest.fixture
def images():
    return torch.randn(8, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_error_is_measured_after_the_batchnorm_and_activation_of_the_consumer(images):
    net = chain(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    first, _, second, norm, *_ = net
    read = first(images).relu()
    hidden = read.clone()
    hidden[:, [1, 4, 5]] = 0

    def seen(value):
        return functional.batch_norm(second(value), None, None, norm.weight, norm.bias, True).relu()

    expected = (seen(read) - seen(hidden)).square().sum() / seen(read).square().sum()
    assert torch.allclose(scored(net, [1, 4, 5], images)["2"], expected, rtol=1e-9)


def test_sets_are_hidden_one_after_the_other(images):
    net = chain(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
    space = traced(net)
    path = ScoringPath(net, find_consumers(net, space, space.variable[0].consumers))
    path.hide([(space.variable[0], [torch.tensor([1, 4, 5]), torch.tensor([2])])])
    path.attach()
    net(images)
    path.detach()
    alone = [scored(net, channels, images)["2"] for channels in ([1, 4, 5], [2])]
    assert torch.allclose(path.relative_errors()["2"], torch.stack(alone), rtol=1e-9)


def test_hiding_all_inputs_of_a_layer_without_bias_and_norm_has_an_error_of_one(images):
    net = chain(nn.Conv2d(6, 6, 1, bias=False))
    assert float(scored(net, range(6), images)["1"]) == pytest.approx(1, abs=1e-12)


def test_dead_channels_and_columns_of_zeros_have_no_error(images):
    net = chain(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = 0, 0
        net[2].weight[:, 3] = 0
    assert float(scored(net, [2, 3], images)["2"]) == 0
    assert float(scored(net, [1], images)["2"]) > 0


def test_a_consumer_whose_outputs_are_zero_has_no_error(images):
    net = chain(nn.Conv2d(6, 6, 1, bias=False))
    nn.init.zeros_(net[1].weight)
    assert float(scored(net, [0, 1], images)["1"]) == 0


@pytest.mark.parametrize("number", [torch.float32, torch.float64])
def test_scoring_changes_neither_outputs_nor_gradients_nor_running_statistics(images, number):
    found = []
    for score in (False, True):
        net = chain(nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        net.to(number)
        space = traced(net)
        path = ScoringPath(net, find_consumers(net, space, ["2", "6"]))
        if score:
            path.hide((group, [torch.tensor([0, 3]), torch.tensor([5])]) for group in space.variable)
            path.attach()
        output = net(images.to(number))
        output.square().sum().backward()
        found.append([output, *(parameter.grad for parameter in net.parameters()), *net.buffers()])
        assert len(path.relative_errors()) == 2 * score
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_evaluation_is_not_scored(images):
    assert scored(chain(nn.Conv2d(6, 6, 1)).eval(), [0], images) == {}


def test_errors_of_dead_outputs_do_not_count(images):
    net = chain(nn.Conv2d(6, 6, 1), nn.ReLU())
    space = traced(net)
    first, second = space.variable
    with torch.no_grad():
        net[1].weight[2:, 0] = 0  # channel 0 matters to outputs 0 and 1 only
    path = ScoringPath(net, find_consumers(net, space, first.consumers))
    alive = torch.ones(12, dtype=torch.bool)
    alive[second.start : second.start + 2] = False
    path.keep(alive)
    path.hide([(first, [torch.tensor([0])])])
    path.attach()
    net(images)
    assert float(path.relative_errors()["1"]) == 0


def test_every_position_of_a_flattened_channel_is_hidden(images):
    net = chain(nn.ReLU())
    read = net[0](images).relu().flatten(1)
    hidden = read.clone()
    hidden[:, 2 * 16 : 3 * 16] = 0
    base = net[3](read)
    expected = (base - net[3](hidden)).square().sum() / base.square().sum()
    assert torch.allclose(scored(net, [2], images)["3"], expected, rtol=1e-9)


def test_what_follows_a_layer_is_seen_in_functional_code_too():
    net = tiny_nets.Residual()
    space = trace(net, torch.zeros(1, *tiny_nets.IMAGE))
    consumers = find_consumers(net, space, ["inner", "outer", "fc"])
    assert consumers["inner"].activation is not None
    assert consumers["outer"].activation is None  # its output goes into an addition
    assert (consumers["inner"].norm, consumers["fc"].norm) == ("", "")
    assert not net.inner._forward_hooks


class Halves(nn.Module):
    """`second` reads the second half of the channels of `first`, `last` reads all of them and what `second` writes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(3, 5, 1)
        self.last = nn.Linear(11, 4)

    def forward(self, x):
        left, right = self.first(x).chunk(2, 1)
        return self.last(torch.cat([left, self.second(right), right], 1).mean((2, 3)))


def test_a_consumer_of_half_the_channels_loses_those_that_it_reads(images):
    errors = [scored(Halves().double().train(), channels, images) for channels in ([0], [4], [0, 4])]
    assert float(errors[0]["second"]) == 0
    assert float(errors[1]["second"]) > 0
    assert float(errors[2]["second"]) == pytest.approx(float(errors[1]["second"]))
    assert float(errors[0]["last"]) > 0
