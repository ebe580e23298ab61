import pytest
import torch
from torch import nn

from pruning.calibration.layer_calls import LayerHooks
from pruning.methods.aofp.ablation import ablate, along, normalised
from spaces.space import LayerWeights


def called(net, x, weights):
    """Return the call of a net's only layer."""
    calls = []
    hooks = LayerHooks(net, {"layer": weights})
    hooks.add("layer", after=calls.append)
    net(x)
    hooks.remove()
    return calls[0]


LAYERS = {
    "plain": nn.Conv2d(8, 6, 3, padding=1),
    "grouped": nn.Conv2d(8, 6, 3, groups=2),
    "linear": nn.Linear(8, 5),
    "transposed": nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1),
}


@pytest.mark.parametrize("hidden", [[0, 3, 7], [6, 1, 3, 4], [7, 6, 5, 4, 3, 2, 1, 0]], ids=len)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_output_without_some_inputs_is_that_of_a_pass_over_masked_inputs(kind, hidden):
    layer, shape = LAYERS[kind], (4, 8) if kind == "linear" else (4, 8, 5, 5)
    read, hidden = torch.randn(shape), torch.tensor(hidden, dtype=torch.int64)
    mask = torch.ones(8).index_fill_(0, hidden, 0).view(-1, *[1] * (len(shape) - 2))
    with torch.no_grad():
        call = called(layer, read, LayerWeights("weight", "bias", transposed=kind == "transposed"))
        assert torch.allclose(ablate(call, hidden), layer(read * mask), atol=1e-5)


def test_a_mask_is_broadcast_over_the_channel_axis_in_the_dtype_of_the_value():
    mask, maps, features = torch.tensor([True, False]), torch.ones(3, 2, 4, 4).double(), torch.ones(3, 2)
    assert along(mask, False, maps).dtype == torch.float64
    assert (maps * along(mask, False, maps))[:, 1].sum() == 0
    assert (features * along(mask, True, features)).sum(0).tolist() == [3, 0]


@pytest.mark.parametrize("training", [True, False])
def test_a_second_normalisation_gives_the_same_output_and_leaves_the_statistics(training):
    norm, value = nn.BatchNorm2d(4).train(training), torch.randn(8, 4, 3, 3)
    norm.running_mean.fill_(0.5)
    expected = nn.functional.batch_norm(value, norm.running_mean.clone(), norm.running_var.clone(), training=training)
    before = norm.running_mean.clone()
    with torch.no_grad():
        assert torch.allclose(normalised(norm, value), expected, atol=1e-6)
    assert torch.equal(norm.running_mean, before)
