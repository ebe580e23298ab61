import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning.allocation import accuracy_path, allocate, convex, score_curve, usage
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.errors import BudgetError
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace
from spaces.tracing.tracer import trace
from spaces.widths import Widths


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 4, 1)
    )
    return trace(net.eval(), torch.zeros(1, 3, 8, 8))


def _line(height: float) -> np.ndarray:
    return np.linspace(height, 0.0, 33)


def _half(space: SearchSpace) -> Budget:
    return Budget.parse("50%").resolve(space.dense_cost)


def test_the_group_that_loses_nothing_is_narrowed(space) -> None:
    widths = allocate(space, {"0": _line(1.0), "2": _line(0.0)}, [_half(space)])
    assert widths["0"] == 32 > 2 * widths["2"]
    widths = allocate(space, {"0": _line(0.0), "2": _line(1.0)}, [_half(space)])
    assert widths["2"] >= 31 > widths["0"]


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.15, 1.0), heights=st.tuples(st.floats(0, 10), st.floats(0, 10)))
def test_the_budget_is_met_and_used_whatever_the_curves(space, share, heights) -> None:
    budget = Budget("flops", int(share * space.dense_cost.flops))
    widths = allocate(space, {"0": _line(heights[0]), "2": _line(heights[1])}, [budget])
    space.check(widths)
    assert 0.9 <= usage(space.cost(widths), [budget]) <= 1  # with two groups, a channel is up to a tenth


def test_a_budget_above_the_dense_cost_cuts_nothing(space) -> None:
    assert allocate(space, {"0": _line(1.0), "2": _line(1.0)}, [Budget.parse("1gflops")]) == space.largest


def test_a_budget_under_the_smallest_net_is_an_error(space) -> None:
    with pytest.raises(BudgetError, match="smallest network"):
        allocate(space, {"0": _line(1.0), "2": _line(1.0)}, [Budget.parse("1flops")])


def test_usage_is_that_of_the_tightest_budget_and_leaves_latency_out() -> None:
    budgets = [Budget("flops", 100), Budget("params", 10), Budget.parse("1ms")]
    assert usage(Cost(flops=50, params=9), budgets) == 0.9


def test_a_convex_curve_is_kept_and_a_bump_is_cut_off() -> None:
    assert convex(np.array([9.0, 4.0, 1.0, 0.0])).tolist() == [9.0, 4.0, 1.0, 0.0]
    assert convex(np.array([4.0, 4.0, 4.0, 1.0, 0.0])).tolist() == [4.0, 3.0, 2.0, 1.0, 0.0]


def test_every_step_saves_as_much_as_asked_and_takes_the_attempt_that_the_judge_prefers(space) -> None:
    budget = _half(space)
    judged: list[Widths] = []

    def likes_a_wide_stem(widths: Widths) -> float:
        judged.append(widths)
        return widths["0"]

    path = accuracy_path(space, likes_a_wide_stem, lambda w: usage(space.cost(w), [budget]) <= 1, step=0.1)
    assert [widths["0"] for widths in path] == [32] * len(path)
    flops = [space.cost(widths).flops for widths in path]
    saved = [before - after for before, after in zip(flops, flops[1:], strict=False)]
    assert min(saved) >= 0.1 * space.dense_cost.flops
    assert len(judged) == 2 * (len(path) - 1)


def test_the_loop_ends_at_the_smallest_net(space) -> None:
    assert accuracy_path(space, lambda _: 0.0, lambda _: False, step=0.3)[-1] == space.smallest


def test_a_score_curve_adds_up_the_lowest_scores_in_units_of_their_mean() -> None:
    group = ChannelGroup("g", 3, 1, 3)
    assert score_curve(group, np.array([1.0, 3.0, 2.0])).tolist() == [3.0, 1.5, 0.5, 0.0]
    grouped = ChannelGroup("g", 4, 2, 4, divisor=2, conv_groups=2)  # the lowest of both conv groups: 1, 2; 4, 3
    assert score_curve(grouped, np.array([1.0, 4.0, 3.0, 2.0]))[[0, 2, 4]].tolist() == pytest.approx([4.0, 1.2, 0.0])
    assert score_curve(group, np.zeros(3)).tolist() == [0.0] * 4


def test_per_channel_the_lowest_scores_are_removed_per_cost_the_expensive_ones(space) -> None:
    curves = {name: score_curve(space.by_name[name], np.arange(1.0, 33)) for name in ("0", "2")}
    per_channel = allocate(space, curves, [_half(space)], per_cost=False)
    assert abs(per_channel["0"] - per_channel["2"]) <= 1  # equal scores, one threshold
    per_cost = allocate(space, curves, [_half(space)])
    assert per_cost["2"] > per_channel["2"]  # a channel of "0" costs its own filter too
