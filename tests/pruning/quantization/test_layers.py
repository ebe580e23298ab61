import copy
import json

import pytest
import safetensors.torch
import tiny_nets
import torch
from ranked_nets import halved
from torch import nn

from pruning import checkpoint
from pruning.base import LAYERS
from pruning.quantization.layers import bits_per_weight, quantize, size_mb
from pruning.quantization.precision import Precision
from pruning.quantization.rounding import register_rounding
from spaces.counting import count_cost
from spaces.errors import WeightsError

PRECISION = Precision(5, 4, 8)


@pytest.fixture(params=tiny_nets.ALL, ids=lambda kind: kind.__name__)
def net(request):
    torch.manual_seed(0)
    return request.param().eval()


def _quantised(net, precision=PRECISION):
    narrow, space, widths, ranks = halved(net)
    register_rounding(narrow, {name: precision.of_filters(values) for name, values in ranks.items()})
    return narrow, quantize(narrow), space, widths


def test_quantised_layers_compute_the_same_as_rounded_ones_and_load_bit_equal(net):
    narrow, stored, _, widths = _quantised(net)
    images = torch.randn(3, *tiny_nets.IMAGE)
    expected = narrow.eval()(images)
    assert torch.equal(stored.eval()(images), expected)
    back = checkpoint.from_bytes(checkpoint.to_bytes(stored, None, widths), model=net).eval()
    assert torch.equal(back(images), expected)
    assert {layer.kind for layer in back.modules() if getattr(layer, "kind", None) in LAYERS}


def test_a_quantised_net_costs_what_the_plain_one_costs(net):
    narrow, space, widths, _ = halved(net)
    plain = count_cost(narrow, space.input_shape)
    assert plain == space.cost(widths)
    training, stored, _, _ = _quantised(net)
    assert count_cost(training, space.input_shape) == plain
    assert count_cost(stored, space.input_shape) == plain
    back = checkpoint.from_bytes(checkpoint.to_bytes(stored, None, widths), model=net)
    assert count_cost(back, space.input_shape) == plain


def test_the_file_shrinks_with_the_bits():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3, groups=2), nn.Flatten(), nn.Linear(64 * 16, 10))
    bits = {name: torch.full((count,), 4, dtype=torch.uint8) for name, count in (("0", 64), ("1", 64), ("3", 10))}
    plain = len(checkpoint.to_bytes(net, None, {}))
    assert size_mb(net) == 4 * sum(parameter.numel() for parameter in net.parameters()) / 1e6
    register_rounding(net, bits)
    stored = quantize(net)
    file = len(checkpoint.to_bytes(stored, None, {}))
    weights = sum(layer.weight.numel() for layer in (stored[0], stored[1], stored[3]))
    assert size_mb(stored) == pytest.approx((weights / 2 + (4 + 4 + 1) * 138) / 1e6)  # codes; bias, scale and bits
    assert size_mb(stored) * 1e6 < file < size_mb(stored) * 1e6 + 2000
    assert file < plain / 5
    assert bits_per_weight(stored) == 4


def test_the_state_loads_into_another_net(net):
    _, stored, _, _ = _quantised(net)
    other = copy.deepcopy(stored)
    for layer in other.modules():
        if hasattr(layer, "codes"):
            layer.codes = torch.zeros_like(layer.codes)
    images = torch.randn(2, *tiny_nets.IMAGE)
    assert not torch.equal(other.eval()(images), stored.eval()(images))
    other.load_state_dict(stored.state_dict())
    assert torch.equal(other(images), stored(images))
    assert not any(name.endswith("weight") and "codes" in name for name in stored.state_dict())


def test_stored_weights_are_frozen_and_the_rest_trains():
    _, stored, _, _ = _quantised(tiny_nets.Residual())
    before = stored.stem.weight.clone()
    stored.train()(torch.randn(2, *tiny_nets.IMAGE)).sum().backward()
    assert not stored.stem.weight.requires_grad
    assert torch.equal(stored.stem.weight, before)
    assert stored.fc.bias.grad.any()
    assert stored.bn.weight.grad is not None


def test_a_copy_that_is_trained_on_does_not_change_what_was_stored():
    narrow, stored, _, _ = _quantised(tiny_nets.Residual())
    kept = {name: tensor.clone() for name, tensor in stored.state_dict().items()}
    with torch.no_grad():
        for parameter in narrow.parameters():
            parameter.add_(1)
    assert all(torch.equal(kept[name], tensor) for name, tensor in stored.state_dict().items())


@pytest.mark.parametrize("tensor", ["codes", "scales", "bits"])
def test_a_damaged_file_is_refused(tensor):
    net = tiny_nets.Residual()
    _, stored, _, widths = _quantised(net)
    data = checkpoint.to_bytes(stored, None, widths)
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = safetensors.torch.load(data)
    tensors[f"stem.{tensor}"] = tensors[f"stem.{tensor}"][:-1].clone()
    with pytest.raises(WeightsError, match="damaged"):
        checkpoint.from_bytes(safetensors.torch.save(tensors, metadata), model=net)


@pytest.mark.parametrize("shape", [[], [4, 3], [4, 3, 3, -3], [2, 3, 3, 3], [10**12, 3, 3, 3], "none"])
def test_a_shape_that_is_not_that_of_the_codes_is_refused(shape):
    net = tiny_nets.Residual()
    _, stored, _, widths = _quantised(net)
    data = checkpoint.to_bytes(stored, None, widths)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["slimfront"])
    header["layers"]["stem"]["structure"]["shape"] = shape
    forged = safetensors.torch.save(safetensors.torch.load(data), {"slimfront": json.dumps(header)})
    with pytest.raises(WeightsError, match="damaged|cannot be built"):
        checkpoint.from_bytes(forged, model=net)


def test_bits_out_of_range_in_a_file_are_refused():
    net = tiny_nets.Residual()
    _, stored, _, _ = _quantised(net)
    state = stored.state_dict()
    state["stem.bits"] = torch.full_like(state["stem.bits"], 40)
    with pytest.raises(WeightsError, match="damaged"):
        stored.load_state_dict(state)
