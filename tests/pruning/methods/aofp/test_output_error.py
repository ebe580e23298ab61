import copy

import pytest
import tiny_nets
import torch
from torch import nn
from torch.nn import functional

from pruning.methods.aofp.ablation import ablate
from pruning.methods.aofp.output_error import DamagePath, find_readers, readable
from spaces.tracing.tracer import trace


def chain(*middle):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3, padding=1), *middle, nn.Flatten(), nn.Linear(6 * 16, 4)
    return nn.Sequential(*layers).double().train()


def traced(net):
    return trace(copy.deepcopy(net).float(), torch.zeros(1, 1, 4, 4))


def scored(net, channels, images, group=0):
    """Damage at the readers of a group when these of its channels are hidden."""
    space = traced(net)
    path = DamagePath(net, find_readers(net, space, space.variable[group].consumers))
    path.hide([(space.variable[group], torch.tensor(channels))])
    path.attach()
    net(images)
    path.detach()
    return path.damages()


@pytest.fixture
def images():
    return torch.randn(8, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_damage_is_read_after_the_readers_batchnorm_and_activation(images):
    net = chain(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    first, _, second, norm, *_ = net
    read = first(images).relu()
    hidden = read.clone()
    hidden[:, [1, 4, 5]] = 0

    def seen(value):
        return functional.batch_norm(second(value), None, None, norm.weight, norm.bias, True).relu()

    expected = (seen(read) - seen(hidden)).square().sum() / seen(read).square().sum()
    assert torch.allclose(scored(net, [1, 4, 5], images)["2"], expected, rtol=1e-9)


def test_hiding_all_that_a_layer_without_bias_and_norm_reads_costs_all_its_energy(images):
    net = chain(nn.Conv2d(6, 6, 1, bias=False))
    assert float(scored(net, range(6), images)["1"]) == pytest.approx(1, abs=1e-12)


def test_dead_channels_and_columns_of_zeros_cost_nothing_at_all(images):
    net = chain(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = 0, 0
        net[2].weight[:, 3] = 0
    assert float(scored(net, [2, 3], images)["2"]) == 0
    assert float(scored(net, [1], images)["2"]) > 0


def test_a_silent_reader_is_not_damaged(images):
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
        path = DamagePath(net, find_readers(net, space, ["2", "6"]))
        if score:
            path.hide((group, torch.tensor([0, 3])) for group in space.variable)
            path.attach()
        output = net(images.to(number))
        output.square().sum().backward()
        found.append([output, *(each.grad for each in net.parameters()), *net.buffers()])
        assert len(path.damages()) == 2 * score
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_evaluation_is_not_scored(images):
    assert scored(chain(nn.Conv2d(6, 6, 1)).eval(), [0], images) == {}


def test_damage_in_outputs_that_are_dead_themselves_does_not_count(images):
    net = chain(nn.Conv2d(6, 6, 1), nn.ReLU())
    space = traced(net)
    first, second = space.variable
    with torch.no_grad():
        net[1].weight[2:, 0] = 0  # channel 0 matters to outputs 0 and 1 only
    path = DamagePath(net, find_readers(net, space, first.consumers))
    alive = torch.ones(12, dtype=torch.bool)
    alive[second.start : second.start + 2] = False
    path.keep(alive)
    path.hide([(first, torch.tensor([0]))])
    path.attach()
    net(images)
    assert float(path.damages()["1"]) == 0


@pytest.mark.parametrize("hidden", [[0, 3, 7], [6, 1, 3, 4], [7, 6, 5, 4, 3, 2, 1, 0]], ids=len)
@pytest.mark.parametrize("layer", [nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, 3, groups=2), nn.Linear(8, 5)])
def test_what_is_left_without_some_inputs_is_what_a_pass_over_masked_inputs_gives(layer, hidden):
    shape = (4, 8) if isinstance(layer, nn.Linear) else (4, 8, 5, 5)
    read, hidden = torch.randn(shape), torch.tensor(hidden, dtype=torch.int64)
    mask = torch.ones(8).index_fill_(0, hidden, 0).view(-1, *[1] * (len(shape) - 2))
    with torch.no_grad():
        assert torch.allclose(ablate(layer, read, layer(read), hidden), layer(read * mask), atol=1e-5)


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
    readers = find_readers(net, space, ["inner", "outer", "fc"])
    assert readers["inner"].activation is not None
    assert readers["outer"].activation is None  # its output goes into an addition
    assert (readers["inner"].norm, readers["fc"].norm) == ("", "")
    assert not net.inner._forward_hooks


def test_only_layers_whose_pass_can_be_repeated_are_readable():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    net = nn.Sequential(nn.Conv2d(1, 2, 1), Scaled(2, 2, 1), nn.Flatten())
    assert [readable(net, name) for name in ("0", "1", "2", "none")] == [True, False, False, False]
