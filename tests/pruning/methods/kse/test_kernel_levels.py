import numpy as np
import pytest
import tiny_nets
import torch
from torch import nn

from pruning.methods.kse.kernel_indicator import LevelRule
from pruning.methods.kse.kernel_levels import KernelSpace
from pruning.methods.kse.shareable_convs import find_shareable_convs
from spaces.budget import Budget
from spaces.errors import BudgetError
from spaces.space import SpaceConfig
from spaces.tracing.tracer import trace

RULE = LevelRule(4, 0)


def spaced(net, indicators=None, config=None):
    shape = (3, 8, 8)
    net.eval()
    space = trace(net, torch.zeros(1, *shape), config)
    convs = find_shareable_convs(net, space)
    rng = np.random.default_rng(0)
    given = indicators or {conv.name: rng.random(len(conv.inputs)) for conv in convs}
    return KernelSpace(net, space, convs, given)


def chain():
    """Return a stem of 8 channels, a layer that reads them and writes 6, and a layer that reads these."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(64, 2)
    )


def test_the_cost_is_counted_by_hand():
    """6 and 4 kernels at the full level; 2 of 6 for a quarter (6 / 4, rounded up), 1 of 4."""
    levels = {"2": [1.0, 0.3, 0.3, 0, 0, 0, 0, 0], "4": [1.0, 1.0, 0.4, 0.4, 0.4, 0]}
    space = spaced(chain(), {name: np.array(indicators) for name, indicators in levels.items()})
    assignment = space.assign(RULE, space.levels(RULE, 1.0))
    # Stem: 3 of 8 channels are read. Second: 5 of 6 are, so 5 + 2 + 2 kernels. Third: 4 + 4 + 1 + 1 + 1 kernels.
    assert dict(assignment.widths) == {"0": 3, "2": 5, "4": 4}
    assert assignment.kept.tolist() == [5, 2, 2, 0, 0, 0, 0, 0, 4, 4, 1, 1, 1, 0]
    assert assignment.cost.flops == 36 * 27 * 3 + 16 * 9 * 9 + 16 * 11 + 64 * 2
    assert assignment.cost.params == (27 * 3 + 3) + (9 * 9 + 5) + (11 + 4) + (64 * 2 + 2)


def test_a_residual_stream_keeps_a_channel_while_any_layer_reads_it():
    """In a residual net the classifier reads the whole stream."""
    indicators = {"inner": np.array([1.0] + [0.0] * 7), "outer": np.array([1.0, 1.0] + [0.0] * 4)}
    space = spaced(tiny_nets.Residual(), indicators)
    assert dict(space.assign(RULE, space.levels(RULE, 1.0)).widths) == {"stem": 8, "inner": 2}


def test_every_conv_group_of_every_layer_reads_a_channel():
    space = spaced(tiny_nets.Grouped())
    levels = space.levels(RULE, 0.0)
    assert (levels[:16].reshape(4, 4).max(axis=1) == 2).all()
    assert levels[16:].max() == 2


def test_widths_keep_floors_divisors_and_equal_conv_groups():
    zero = {"2": np.array([1.0] + [0.0] * 7), "4": np.array([1.0] + [0.0] * 5)}
    space = spaced(chain(), zero, SpaceConfig(divisor=2, floor=0.5))
    assert dict(space.assign(RULE, space.levels(RULE, 1.0)).widths) == {"0": 4, "2": 4, "4": 4}
    indicators = {"grouped": np.array([1.0, 1.0, 1.0] + [0.0] * 13), "last": np.array([1.0] + [0.0] * 23)}
    space = spaced(tiny_nets.Grouped(), indicators)
    widths = space.assign(RULE, space.levels(RULE, 1.0)).widths
    space.space.check(widths)
    assert (widths["first"], widths["grouped"]) == (12, 4)


def test_bounds_under_the_dense_width_hold_even_if_all_channels_matter():
    space = spaced(chain(), config=SpaceConfig(bound=("0=0.25:0.5",)))
    assignment, _ = space.fit(RULE, [])
    assert assignment.widths["0"] == 4
    assert (assignment.kept[:8] > 0).sum() == 4


@pytest.mark.parametrize(
    "factory", [chain, tiny_nets.Residual, tiny_nets.Concat, tiny_nets.Depthwise, tiny_nets.Grouped]
)
def test_cost_never_falls_as_the_multiplier_grows(factory):
    space = spaced(factory())
    costs = [space.assign(RULE, space.levels(RULE, m)).cost for m in [0.0, *np.geomspace(0.1, 1e4, 61)]]
    assert all(a.flops <= b.flops and a.params <= b.params for a, b in zip(costs, costs[1:], strict=False))
    dense = space.space.dense_cost
    assert (costs[-1].flops, costs[-1].params) == (dense.flops, dense.params)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_budgets_are_met_all_at_once_and_used_well(share):
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 48, 3), nn.ReLU(), nn.Conv2d(48, 64, 3), nn.ReLU()]
    space = spaced(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)))
    dense = space.space.dense_cost
    flops = Budget("flops", int(share * dense.flops))
    one, _ = space.fit(RULE, [flops])
    assert 0.99 * flops.limit <= one.cost.flops <= flops.limit
    params = Budget("params", int(0.8 * one.cost.params))
    both, _ = space.fit(RULE, [flops, params, Budget("latency", 1e-9)])
    assert both.cost.flops <= flops.limit
    assert 0.98 * params.limit <= both.cost.params <= params.limit


def test_the_multiplier_is_the_largest_that_fits():
    space = spaced(chain())
    flops = space.space.dense_cost.flops // 2
    assignment, multiplier = space.fit(RULE, [Budget("flops", flops)])
    larger = space.assign(RULE, space.levels(RULE, multiplier * (1 + 1e-9) + 1e-12))
    assert larger.cost.flops > flops
    assert (assignment.levels >= space.levels(RULE, multiplier)).all()


def test_the_whole_budget_gives_the_dense_net_even_to_channels_of_indicator_zero():
    indicators = {"2": np.array([1.0] + [0.5] * 6 + [0.0]), "4": np.array([1.0] * 6)}
    space = spaced(chain(), indicators)
    assignment, _ = space.fit(RULE, [Budget("params", space.space.dense_cost.params)])
    assert assignment.cost.params <= space.space.dense_cost.params
    assert (assignment.levels[1:7] == 4).all()


def test_a_budget_under_the_smallest_net_names_its_cost():
    space = spaced(chain())
    least = space.assign(RULE, space.levels(RULE, 0.0)).cost
    with pytest.raises(BudgetError, match=f"{least.flops:,} flops and {least.params:,} params at least"):
        space.fit(RULE, [Budget("flops", least.flops - 1)])
    assignment, _ = space.fit(RULE, [Budget("flops", least.flops)])
    assert assignment.cost == least
