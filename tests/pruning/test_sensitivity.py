import copy

import pytest
import torch

from pruning.rewriting.surgery import slice_channels
from pruning.sensitivity import Divergence, sensitivity
from spaces.tracing.tracer import trace


def test_the_dense_net_does_not_diverge_and_a_cut_one_does(tiny_residual, tiny_context) -> None:
    context = tiny_context()
    divergence = Divergence(tiny_residual, context, 48)
    space = trace(tiny_residual, context.images)
    assert divergence(slice_channels(tiny_residual, space, {})) == 0.0
    assert divergence(slice_channels(tiny_residual, space, {"conv1": torch.tensor([0])})) > 0.0


def test_with_labels_it_is_the_loss_of_distillation(tiny_residual, tiny_context) -> None:
    """The reference sums cross-entropy and sum p log(p / q) image by image, of batches normalised by themselves."""
    context = tiny_context()
    space = trace(tiny_residual, context.images)
    narrow = slice_channels(tiny_residual, space, {"conv1": torch.tensor([0, 3, 5])})
    expected = []
    for images, labels in zip(context.images.split(16), context.labels.split(16), strict=True):
        with torch.no_grad():
            p, q = (copy.deepcopy(net).train()(images).softmax(1).double() for net in (tiny_residual, narrow))
        expected += [
            float((dense * (dense / cut).log()).sum() - cut[label].log())
            for dense, cut, label in zip(p, q, labels.tolist(), strict=True)
        ]
    loss = Divergence(tiny_residual, context, 48, label_weight=1.0)(narrow)
    assert loss == pytest.approx(sum(expected) / 48, rel=1e-5)


def test_measuring_leaves_the_dense_net_alone(tiny_residual, tiny_context) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_residual.state_dict().items()}
    Divergence(tiny_residual, tiny_context(), 48)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_residual.state_dict().items())
    assert not any(module.training for module in tiny_residual.modules())


def test_curves_pass_through_the_measured_losses_and_fall(tiny_residual) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    curves = sensitivity(space, lambda widths: sum((1 - w / space.full[name]) ** 2 for name, w in widths.items()))
    assert curves["stem"][[8, 6, 4, 2]].tolist() == [0.0, 0.0625, 0.25, 0.5625]
    assert all((curve[:-1] >= curve[1:]).all() for curve in curves.values())
    assert curves["stem"][0] > curves["stem"][2]


def test_a_dip_in_the_measured_losses_does_not_make_a_curve_rise(tiny_residual) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    curves = sensitivity(space, lambda widths: 0.1 if max(widths.values()) > 4 else 0.0)
    assert all((curve[:-1] >= curve[1:]).all() for curve in curves.values())
