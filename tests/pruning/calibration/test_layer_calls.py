"""Calls of modules and of functions that take a parameter are seen, changed and repeated alike."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pruning.calibration.layer_calls import LayerHooks, is_observable, is_repeatable
from spaces.space import LayerWeights


class Own(nn.Module):
    """The same three layers as modules, or as parameters that functions take."""

    def __init__(self, modules: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        parts = nn.Conv2d(3, 4, 3, groups=1), nn.ConvTranspose2d(4, 6, 2, stride=2, output_padding=1), nn.Linear(6, 2)
        if modules:
            self.conv, self.up, self.fc = parts
        else:
            self.conv, self.up, self.fc = (part.weight for part in parts)
            self.biases = nn.ParameterList(part.bias for part in parts)

    def forward(self, x):
        if isinstance(self.conv, nn.Module):
            return self.fc(self.up(self.conv(x).relu()).mean((2, 3)))
        x = functional.conv2d(x, self.conv, bias=self.biases[0]).relu()
        x = functional.conv_transpose2d(x, self.up, self.biases[1], 2, output_padding=1)
        return functional.linear(x.mean((2, 3)), weight=self.fc, bias=self.biases[2])


@pytest.fixture
def nets():
    return Own(True), Own(False)


def layers_of(net):
    end = ".weight" if isinstance(net.conv, nn.Module) else ""
    return {name: LayerWeights(name + end, transposed=name == "up") for name in ("conv", "up", "fc")}


def test_functions_are_seen_as_modules_are(nets) -> None:
    seen = []
    image = torch.randn(2, 3, 6, 6)
    for net in nets:
        calls = []
        hooks = LayerHooks(net, layers_of(net))
        for name in ("conv", "up", "fc"):
            hooks.add(name, after=calls.append)
        net(image)
        hooks.remove()
        net(image)  # unseen
        seen.append(calls)
    assert [len(calls) for calls in seen] == [3, 3]
    for module, function in zip(*seen, strict=True):
        for attribute in ("value", "output", "filters", "bias"):
            assert torch.equal(getattr(module, attribute), getattr(function, attribute))
        assert module.channels_last == function.channels_last
        for call in (module, function):
            assert torch.equal(call.repeat(call.value, call.filters, call.bias), call.output)
    assert [tuple(call.filters.shape) for call in seen[0]] == [(4, 3, 3, 3), (6, 4, 2, 2), (2, 6)]


def test_an_input_can_be_changed_before_the_call(nets) -> None:
    image = torch.randn(2, 3, 6, 6)
    outputs = []
    for net in nets:
        hooks = LayerHooks(net, layers_of(net))
        hooks.add("up", before=lambda value: value * 0)
        outputs.append(net(image))
        hooks.remove()
        assert not torch.allclose(net(image), outputs[-1])
    assert torch.equal(*outputs)
    expected = nets[0].fc(nets[0].up.bias.expand(2, -1))
    torch.testing.assert_close(outputs[0], expected)


def test_functions_are_no_longer_watched_after_an_error(nets) -> None:
    net, calls = nets[1], []
    hooks = LayerHooks(net, layers_of(net))
    hooks.add("fc", after=calls.append)
    with pytest.raises(RuntimeError, match="channels"):
        net(torch.randn(2, 5, 6, 6))
    functional.linear(torch.ones(1, 6), net.fc)
    assert not calls
    net(torch.randn(2, 3, 6, 6))
    assert len(calls) == 1


def test_only_plain_layers_can_be_repeated() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    net = nn.Sequential(nn.Conv2d(1, 2, 1), Scaled(2, 2, 1), nn.ConvTranspose2d(2, 2, 1))
    net.own = nn.Parameter(torch.ones(1))
    layers = [LayerWeights("0.weight"), LayerWeights("1.weight"), LayerWeights("2.weight", transposed=True)]
    layers += [LayerWeights("own"), LayerWeights("own", computed=True)]
    assert [is_repeatable(net, layer) for layer in layers] == [True, False, True, True, False]
    assert [is_observable(net, layer) for layer in layers] == [True, True, True, True, False]
