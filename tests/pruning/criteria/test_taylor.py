import pytest
import torch
from torch import nn
from torch.nn import functional

from pruning.base import PruningError
from pruning.criteria.taylor import Taylor
from spaces.tracing.tracer import trace


def _plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 6), nn.Flatten()).eval()


def test_scores_are_squared_sums_of_gradient_times_value_averaged_over_batches(tiny_context) -> None:
    net, context = _plain(), tiny_context()
    space = trace(net, torch.zeros(1, 3, 8, 8))
    scores = Taylor(images=48).scores(net, space, context)["0"]
    expected = torch.zeros(6, dtype=torch.float64)
    for images, labels in context.calibration_batches(48):
        weight, bias = net[0].weight, net[0].bias
        grads = torch.autograd.grad(functional.cross_entropy(net(images), labels), [weight, bias])
        change = (grads[0] * weight).flatten(1).sum(1) + grads[1] * bias
        expected += change.detach().double().square() / 3
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-9)


def test_behind_a_batchnorm_its_scale_and_shift_are_the_gate(tiny_residual, tiny_context) -> None:
    context = tiny_context()
    with torch.no_grad():
        tiny_residual.norm1.bias.normal_(generator=torch.Generator().manual_seed(0))
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    scores = Taylor(images=16).scores(tiny_residual, space, context)["conv1"]
    images, labels = next(context.calibration_batches(16))
    gate = torch.ones(12, 1, 1, requires_grad=True)
    tiny_residual.norm1.register_forward_hook(lambda module, inputs, output: output * gate)
    (grad,) = torch.autograd.grad(functional.cross_entropy(tiny_residual(images), labels), gate)
    torch.testing.assert_close(scores, grad.flatten().double().square(), rtol=1e-4, atol=1e-9)


def test_a_channel_nobody_reads_scores_nothing(tiny_residual, tiny_context) -> None:
    with torch.no_grad():
        tiny_residual.conv2.weight[:, 5] = 0
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    scores = Taylor().scores(tiny_residual, space, tiny_context())["conv1"]
    assert scores[5] == 0
    assert int((scores > 0).sum()) == 11


def test_without_images_or_with_broken_weights_it_says_so(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    with pytest.raises(PruningError, match="no calibration images"):
        Taylor(images=0).scores(tiny_residual, space, tiny_context())
    with torch.no_grad():
        tiny_residual.stem.weight[0] = torch.nan
    with pytest.raises(PruningError, match="not finite"):
        Taylor().scores(tiny_residual, space, tiny_context())
