import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from pruning.base import PruningError
from pruning.quantization.rounding import Rounding, best_clips, levels_of, register_rounding


def _weight(filters: int = 6, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(filters, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_rounded_weights_lie_on_the_grid_of_their_filter():
    weight, bits = _weight(), torch.tensor([2, 3, 4, 5, 8, 16], dtype=torch.uint8)
    rounding = Rounding(bits, weight)
    steps = rounding(weight) / rounding.scales(weight).view(-1, 1, 1, 1)
    torch.testing.assert_close(steps, steps.round(), atol=1e-9, rtol=0)
    for filter_, levels in zip(steps, (1, 3, 7, 15, 127, 32767), strict=True):
        assert filter_.abs().max().round() == levels


def test_the_gradient_is_the_identity_within_the_range_and_stops_outside():
    weight = _weight().requires_grad_()
    rounding = Rounding(torch.full((6,), 3, dtype=torch.uint8), weight.detach())
    given = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rounding(weight).backward(given)
    limit = (rounding.scales(weight) * (rounding.levels + 0.5)).view(-1, 1, 1, 1)
    inside = weight.detach().abs() <= limit
    assert inside.any()
    assert not inside.all()
    assert torch.equal(weight.grad[inside], given[inside])
    assert not weight.grad[~inside].any()


def test_the_range_has_the_least_squared_error_of_those_tried():
    weight = _weight(filters=20)
    for width in (2, 3, 4, 8):
        bits = torch.full((20,), width, dtype=torch.uint8)
        rounding = Rounding(bits, weight)
        error = (rounding(weight) - weight).square().flatten(1).sum(1)
        levels = levels_of(bits, weight)
        for clip in (1.0, 0.8, 0.6, 0.4):
            limits = clip * weight.abs().flatten(1).amax(1)
            scales = (limits / levels).view(-1, 1, 1, 1)
            steps = (weight / scales).round().clamp(-levels[0], levels[0])
            assert (error <= (steps * scales - weight).square().flatten(1).sum(1) + 1e-12).all()


def test_many_bits_use_the_whole_range_and_few_do_not():
    weight = _weight(filters=20)
    assert (best_clips(weight, torch.full((20,), 2.0**15 - 1, dtype=torch.float64)) == 1).all()
    assert (best_clips(weight, torch.full((20,), 1.0, dtype=torch.float64)) < 1).all()


def test_large_layers_are_searched_part_by_part(monkeypatch):
    weight, levels = _weight(filters=20), torch.full((20,), 3.0, dtype=torch.float64)
    whole = best_clips(weight, levels)
    assert whole.unique().numel() > 1
    for elements in (1, 60, 27 * 7):
        monkeypatch.setattr("pruning.quantization.rounding.CACHED_ELEMENTS", elements)
        assert torch.equal(best_clips(weight, levels), whole)


def test_a_filter_of_zeros_stays_zero_and_trains():
    weight = torch.zeros(2, 4, requires_grad=True)
    rounded = Rounding(torch.full((2,), 4, dtype=torch.uint8), weight.detach())(weight)
    rounded.sum().backward()
    assert not rounded.any()
    assert (weight.grad == 1).all()


def test_layers_compute_with_rounded_weights_and_training_moves_the_others():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    weight = net[2].weight
    register_rounding(net, {"0": torch.full((4,), 4, dtype=torch.uint8)})
    assert parametrize.is_parametrized(net[0])
    assert net[2].weight is weight
    assert net[0].weight.unique().numel() <= 4 * 15
    assert net[0].parametrizations.weight.original.unique().numel() > 4 * 15
    assert sum(parameter.numel() for parameter in net.parameters()) == 4 * 27 + 4 + 8 + 2
    net(torch.randn(2, 3, 3, 3)).sum().backward()
    assert net[0].parametrizations.weight.original.grad.any()


def test_weights_that_are_not_finite_are_refused():
    net = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    with pytest.raises(PruningError, match="'0' are not finite"):
        register_rounding(net, {"0": torch.full((2,), 4, dtype=torch.uint8)})
