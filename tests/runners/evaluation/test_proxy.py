"""The proxy: which share of the dense network's logits the features of a cut network explain."""

import copy
import math

import pytest
import torch
from torch import nn

from runners.data.splits import TensorSplit
from runners.evaluation.context import SearchContext
from runners.evaluation.proxy import BATCH, PROXY_IMAGES, RIDGE, explained, last_features, proxy, proxy_target

CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def left_out(features: torch.Tensor, target: torch.Tensor) -> float:
    """Return what `explained` does, by one regression for every image, on the others."""
    features, target = features.double(), target.double()
    inputs = (features - features.mean(0)) / features.std(0)
    errors, totals = 0.0, 0.0
    for image in range(len(inputs)):
        others = [other for other in range(len(inputs)) if other != image]
        # An intercept that is not penalised, as a column of ones.
        known = torch.cat([inputs[others], torch.ones(len(others), 1)], 1)
        penalty = RIDGE * torch.eye(known.shape[1])
        penalty[-1, -1] = 0
        weights = torch.linalg.solve(known.T @ known + penalty, known.T @ target[others])
        guess = torch.cat([inputs[image], torch.ones(1)]).double() @ weights
        errors += float((target[image] - guess).square().sum())
        totals += float((target[image] - target[others].mean(0)).square().sum())
    return 1 - errors / totals


@pytest.mark.parametrize("size", [3, 60])
def test_the_closed_form_leaves_every_image_out_once(size: int) -> None:
    features = random(40, size)
    target = features[:, :2] @ random(2, 4, seed=1) + 0.5 * random(40, 4, seed=2)
    assert explained(features, target) == pytest.approx(left_out(features, target), abs=1e-6)


def test_features_that_hold_the_target_explain_it_and_others_explain_nothing() -> None:
    target = random(400, 3)
    assert explained(torch.cat([target @ random(3, 3, seed=1), random(400, 2, seed=2)], 1), target) > 0.99
    assert explained(random(400, 5, seed=3), target) == pytest.approx(0.0, abs=0.05)
    assert explained(torch.ones(400, 5), target) == pytest.approx(0.0, abs=1e-9)


def test_scale_and_offset_of_features_do_not_matter() -> None:
    features, target = random(50, 4), random(50, 3, seed=1)
    assert explained(100 * features + 7, target) == pytest.approx(explained(features, target))


def test_a_target_that_does_not_vary_and_features_that_are_not_finite_give_nan() -> None:
    assert math.isnan(explained(random(20, 3), torch.ones(20, 2)))
    assert math.isnan(explained(torch.full((20, 3), math.inf), random(20, 2)))


def images(count: int) -> TensorSplit:
    return TensorSplit(random(count, 1, 4, 4).sigmoid(), torch.arange(count) % 3, (0.5,), (0.5,), (4, 4))


def test_features_are_the_inputs_of_the_last_linear_layer() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)).train()
    found = last_features(net, images(300), device=CPU)
    (batch, _) = next(images(300).batches(300, device=CPU))
    with torch.no_grad():
        assert torch.allclose(found, net[:3](batch), atol=1e-6)
    assert net.training
    assert not net[3]._forward_hooks


def test_a_net_that_does_not_end_in_a_linear_layer_has_its_outputs_for_features() -> None:
    for net in (
        nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU()),
    ):
        assert torch.equal(last_features(net, images(40), device=CPU), proxy_target(net, images(40), device=CPU))


def test_as_many_images_as_the_proxy_takes_are_read_and_it_works_on_a_few() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    split = images(PROXY_IMAGES + BATCH)
    target = proxy_target(net, split, device=CPU)
    assert target.shape == (PROXY_IMAGES, 3)
    assert proxy(net, target, split, device=CPU) > 0.9
    few = images(2)
    assert math.isnan(proxy(net, proxy_target(net, few, device=CPU), few, device=CPU))
    none = images(0)
    assert math.isnan(proxy(net, proxy_target(net, none, device=CPU), none, device=CPU))


def test_the_proxy_does_not_depend_on_the_classifier_of_the_cut_net(tiny_search_context: SearchContext) -> None:
    net, split = copy.deepcopy(tiny_search_context.net), tiny_search_context.data.calibration
    target = proxy_target(net, split, device=CPU)
    before = proxy(net, target, split, device=CPU)
    nn.init.normal_(net[-1].weight)
    assert proxy(net, target, split, device=CPU) == before > 0.5
