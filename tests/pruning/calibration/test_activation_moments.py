import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.base import PruningError
from pruning.calibration.activation_moments import ActivationMoments, Recipe, gather
from spaces.tracing.tracer import trace

SPATIAL = Recipe("spatial", "input", images=48, positions=64)
POOLED = Recipe("pooled", "input", images=48, positions=64)


def _stem_output(net: nn.Module, images: Tensor) -> Tensor:
    """Return the input of the block's first convolution."""
    seen = []
    handle = net.get_submodule("conv1").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(images)
    handle.remove()
    return seen[0].double()


def _site(gathered: ActivationMoments, module: str) -> Any:
    return next(site for site in gathered.sites if site.module == module)


def test_spatial_moments_equal_those_of_all_positions_as_samples(tiny_residual, tiny_context) -> None:
    context = tiny_context()
    moments = _site(gather(tiny_residual, trace(tiny_residual, context.images), SPATIAL, context), "conv1").moments
    samples = _stem_output(tiny_residual, context.images).movedim(1, -1).reshape(-1, 8)
    centred = samples - samples.mean(dim=0)
    torch.testing.assert_close(moments.scatter, centred.T @ centred, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(moments.mean, samples.mean(dim=0), rtol=1e-5, atol=1e-6)
    assert moments.counts.tolist() == [16 * 64] * 3


def test_pooled_moments_equal_those_of_spatial_means(tiny_residual, tiny_context) -> None:
    context = tiny_context()
    moments = _site(gather(tiny_residual, trace(tiny_residual, context.images), POOLED, context), "conv1").moments
    samples = _stem_output(tiny_residual, context.images).mean(dim=(2, 3))
    onehot = torch.nn.functional.one_hot(context.labels, 3).double()
    centred = samples - samples.mean(dim=0)
    torch.testing.assert_close(moments.cross, centred.T @ onehot, rtol=1e-5, atol=1e-4)


def test_few_positions_are_a_grid_over_the_whole_map(tiny_residual, tiny_context) -> None:
    context = tiny_context()
    recipe = Recipe("spatial", "input", images=48, positions=16)
    moments = _site(gather(tiny_residual, trace(tiny_residual, context.images), recipe, context), "conv1").moments
    samples = _stem_output(tiny_residual, context.images)[:, :, 1::2, 1::2].movedim(1, -1).reshape(-1, 8)
    torch.testing.assert_close(moments.mean, samples.mean(dim=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", ["pooled", "spatial", "flatten"])
@pytest.mark.parametrize("where", ["input", "output"])
def test_every_recipe_sees_every_channel_in_one_pass(
    tiny_residual, tiny_context: Callable[..., Any], features: str, where: str
) -> None:
    context, before = tiny_context(), {k: v.clone() for k, v in tiny_residual.state_dict().items()}
    space = trace(tiny_residual, context.images)
    gathered = gather(tiny_residual, space, Recipe(features, where, 48, 16, 1e-3), context)
    for group in space.variable:
        seen = torch.cat([channels for _, _, channels in gathered.sites_of(group)])
        assert set(seen.tolist()) == set(range(group.width))
    assert context.calibrations == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_residual.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_residual.modules())


def _scores_by_autograd(net: nn.Module, images: Tensor, labels: Tensor, ridge: float, unit: bool) -> Tensor:
    """Return -rho * dL/dm at m = 1 of L = tr(YY'A) for masks m on the maps that `conv1` writes."""
    seen: list[Tensor] = []
    handle = net.get_submodule("conv1").register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        net(images)
    handle.remove()
    maps = seen[0].double()
    mask = torch.ones(maps.shape[1], dtype=torch.float64, requires_grad=True)
    masked = (maps * mask.view(1, -1, 1, 1)).flatten(1)
    masked = masked - masked.mean(dim=0)
    codes = torch.stack([(labels == label).double() for label in range(3)], dim=1)
    if unit:
        codes = codes / codes.sum(dim=0).clamp(min=1).sqrt()
    codes = codes - codes.mean(dim=0)
    gram = masked @ masked.T
    rho = ridge * float(gram.diagonal().mean().detach())
    inverse = torch.linalg.inv(gram + rho * torch.eye(len(gram), dtype=torch.float64))
    information = torch.trace(codes @ codes.T @ inverse)
    (gradient,) = torch.autograd.grad(information, mask)
    return -rho * gradient


@pytest.mark.parametrize("unit", [True, False])
def test_flattened_scores_are_those_of_the_label_codes_and_batches_asked_for(tiny_residual, tiny_context, unit) -> None:
    context = tiny_context()
    context.labels = torch.tensor([0] * 30 + [1] * 12 + [2] * 6)[torch.randperm(48)]  # of unequal classes
    recipe = Recipe("flatten", "output", 48, 1, 0.01, unit, batch=10)
    found = _site(gather(tiny_residual, trace(tiny_residual, context.images), recipe, context), "conv1").scores
    parts = [slice(a, b) for start in (0, 16, 32) for a, b in ((start, start + 10), (start + 10, start + 16))]
    expected = [_scores_by_autograd(tiny_residual, context.images[p], context.labels[p], 0.01, unit) for p in parts]
    torch.testing.assert_close(found, torch.stack(expected).sum(dim=0), rtol=1e-3, atol=1e-6)


def test_a_flattened_map_before_a_linear_layer_shows_channels_not_positions(tiny_context) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 3)).eval()
    context = tiny_context()
    moments = _site(gather(net, trace(net, context.images), SPATIAL, context), "3").moments
    maps = net[1](net[0](context.images)).double().detach()
    torch.testing.assert_close(moments.mean, maps.mean(dim=(0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_concatenated_groups_are_told_apart(tiny_context) -> None:
    class Concat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
            self.last = nn.Conv2d(9, 6, 1)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.last(torch.cat([self.left(x), self.right(x)], dim=1))
            return self.head(y.mean(dim=(2, 3)))

    net, context = Concat().eval(), tiny_context()
    space = trace(net, context.images)
    gathered = gather(net, space, SPATIAL, context)
    (found,) = gathered.sites_of(space.by_name["right"])
    assert found[1].tolist() == [4, 5, 6, 7, 8]
    assert found[2].tolist() == [0, 1, 2, 3, 4]


def test_moments_survive_pickling(tiny_residual, tiny_context) -> None:
    context = tiny_context()
    gathered = gather(tiny_residual, trace(tiny_residual, context.images), SPATIAL, context)
    again = pickle.loads(pickle.dumps(gathered))
    assert again.recipe == gathered.recipe
    assert torch.equal(_site(again, "head").moments.scatter, _site(gathered, "head").moments.scatter)


def test_no_images_is_an_error(tiny_residual, tiny_context) -> None:
    context = tiny_context()
    with pytest.raises(PruningError, match="no calibration images"):
        gather(tiny_residual, trace(tiny_residual, context.images), Recipe("pooled", "input", 0, 1), context)


def test_weights_that_are_not_finite_are_named(tiny_residual, tiny_context) -> None:
    context = tiny_context()
    space = trace(tiny_residual, context.images)
    with torch.no_grad():
        tiny_residual.stem.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(PruningError, match="conv1.*not finite"):
        gather(tiny_residual, space, SPATIAL, context)
