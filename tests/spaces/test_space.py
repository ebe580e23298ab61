import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny_nets as nets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from traced_zoo import zoo_space

from spaces.budget import Budget
from spaces.errors import BudgetError, ConfigError, SpaceError
from spaces.space import SearchSpace, SpaceConfig, uniform_ratios
from spaces.tracing.tracer import trace
from spaces.widths import Widths

NAMES = ("resnet20", "resnet50", "densenet121", "resnext50_32x4d")


def space_of(name: str) -> SearchSpace:
    return zoo_space(name, 32 if name == "resnet20" else 64)


@cache
def tiny() -> SearchSpace:
    return trace(nets.Residual(), torch.empty(1, *nets.IMAGE))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(NAMES), st.floats(0, 1), st.integers(0, 2**31), st.booleans())
def test_fit_meets_every_budget_and_uses_it(name: str, share: float, seed: int, both: bool) -> None:
    space = space_of(name)
    least, dense = space.smallest_cost, space.dense_cost
    flops = Budget("flops", least.flops + int(share * (dense.flops - least.flops)))
    params = Budget("params", least.params + int(0.7 * (dense.params - least.params)))
    budgets = (flops, params) if both else (flops,)
    width_ratios = np.random.default_rng(seed).uniform(0, 1, len(space.variable))
    widths = space.fit(width_ratios.tolist(), budgets)
    cost = space.cost(widths)
    space.check(widths)
    assert all(budget.allows(cost) for budget in budgets)
    used = max(cost.flops / flops.limit, cost.params / params.limit if both else 0)
    if used < 0.97 and widths != space.largest:
        assert no_single_step_fits(space, widths, budgets)


def no_single_step_fits(space: SearchSpace, widths: Widths, budgets: tuple[Budget, ...]) -> bool:
    for group in space.variable:
        wider = min(widths[group.name] + group.divisor, group.ceiling)
        if wider > widths[group.name] and all(b.allows(space.cost(widths | {group.name: wider})) for b in budgets):
            return False
    return True


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.08, 0.2, 0.5, 0.9])
def test_uniform_ratios_use_at_least_97_percent(name: str, share: float) -> None:
    space = space_of(name)
    budget = Budget("flops", int(share * space.dense_cost.flops))
    cost = space.cost(space.fit(uniform_ratios(space), [budget]))
    assert 0.97 * budget.limit <= cost.flops <= budget.limit


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100), st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_small_space_is_used_as_far_as_its_granularity_allows(share: int, width_ratios: tuple[float, float]) -> None:
    space = tiny()
    least, dense = space.smallest_cost.flops, space.dense_cost.flops
    budget = Budget("flops", least + share * (dense - least) // 100)
    every = [space.cost({"stem": a, "inner": b}).flops for a in range(1, 9) for b in range(1, 7)]
    best = max(flops for flops in every if flops <= budget.limit)
    assert space.cost(space.fit(width_ratios, [budget])).flops >= min(0.97 * budget.limit, best)


def test_uniform_widths_keep_one_fraction() -> None:
    space = space_of("resnet50")
    widths = space.fit(uniform_ratios(space), [Budget("flops", space.dense_cost.flops // 2)])
    shares = [widths[g.name] / g.width for g in space.variable]
    assert max(shares) - min(shares) < 0.1


def test_a_budget_above_dense_gives_the_largest_widths() -> None:
    space = tiny()
    assert space.fit(uniform_ratios(space), [Budget("flops", 10**12)]) == space.full


def test_a_budget_under_the_smallest_net_gives_the_minimum() -> None:
    space = tiny()
    with pytest.raises(BudgetError, match=f"{space.smallest_cost.flops:,}"):
        space.fit(uniform_ratios(space), [Budget("flops", space.smallest_cost.flops - 1)])
    assert space.fit(uniform_ratios(space), [Budget("flops", space.smallest_cost.flops)]) == space.smallest


def test_a_ratio_of_zero_is_filled_last() -> None:
    space = space_of("resnet20")
    width_ratios = [0.0, *uniform_ratios(space)[1:]]
    widths = space.fit(width_ratios, [Budget("flops", space.dense_cost.flops // 3)])
    assert widths[space.variable[0].name] == space.variable[0].lowest


@pytest.mark.parametrize("width_ratios", [[0.5], [0.5, 1.5], [float("nan"), 0.5]])
def test_ratios_outside_the_unit_interval_are_refused(width_ratios: list[float]) -> None:
    with pytest.raises(SpaceError, match=r"2 numbers in \[0, 1\]"):
        tiny().fit(width_ratios, [Budget("flops", 10**6)])


def test_illegal_widths_are_named() -> None:
    with pytest.raises(SpaceError, match="width 9 of 'stem'"):
        tiny().check({"stem": 9})
    with pytest.raises(SpaceError, match="no variable group"):
        tiny().check({"nose": 2})


def test_default_divisor_is_8_from_128_channels_up() -> None:
    for group in space_of("resnet50").variable:
        assert group.divisor == (8 if group.width >= 128 else 1)
        assert group.lowest >= 0.1 * group.width


def test_an_alignment_is_the_default_divisor_where_it_leaves_more_than_four_widths() -> None:
    spaces = [space_of(name) for name in ("resnet20", "resnet50")]
    for group in itertools.chain(*[space.restrict(SpaceConfig(), alignment=4).variable for space in spaces]):
        assert group.divisor == (1 if group.width <= 16 else 4 if group.width < 128 else 8)
    asked = space_of("resnet20").restrict(SpaceConfig(divisor=2), alignment=4)
    assert {group.divisor for group in asked.variable} == {2}


def test_divisor_and_floor_are_settings() -> None:
    space = tiny().restrict(SpaceConfig(divisor=4, floor=0.6))
    assert [(g.name, g.lowest, g.ceiling) for g in space.variable] == [("inner", 4, 6)]
    assert space.by_name["stem"].fixed == "no narrower multiple of 4 between floor and dense width"


def test_only_leaves_the_named_layers_variable() -> None:
    space = tiny().restrict(SpaceConfig(only=("inn*",)))
    assert [g.name for g in space.variable] == ["inner"]
    assert space.by_name["stem"].fixed == "not named by --only"
    assert space.cost({"inner": 3}) == tiny().cost({"inner": 3})


def test_bounds_limit_matching_layers() -> None:
    group = tiny().restrict(SpaceConfig(bound=("stem=0.25:0.5",))).by_name["stem"]
    assert (group.lowest, group.ceiling) == (2, 4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"divisor": -1}, "--divisor is -1 and must be"),
        ({"floor": 0.0}, "--floor is 0.0 and must be"),
        ({"floor": 1.5}, "--floor is 1.5 and must be"),
        ({"bound": ("stem=0.9:0.2",)}, "bound 'stem=0.9:0.2'"),
        ({"bound": ("stem",)}, "bound 'stem'"),
    ],
)
def test_wrong_settings_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpaceConfig(**config)


def test_a_pattern_that_matches_no_layer_is_named() -> None:
    with pytest.raises(SpaceError, match=r"'nose\*' matches no layer"):
        tiny().restrict(SpaceConfig(skip=("nose*",)))
