import numpy as np
import pytest
from traced_zoo import zoo_space

from spaces.budget import Budget
from spaces.cost import CostModel, Form, PolynomialBuilder
from spaces.errors import BudgetError
from spaces.groups import ChannelGroup
from spaces.projection import Projection, Relaxation
from spaces.space import SearchSpace
from spaces.widths import Widths


def projection() -> Projection:
    """Two groups of 10 channels; a network costs width a + 3 width b FLOPs, and one parameter per channel."""
    flops, params = PolynomialBuilder(2), PolynomialBuilder(2)
    for index, coefficient in enumerate((1, 3)):
        flops.add(coefficient, Form(0, ((index, 1),)))
        params.add(1, Form(0, ((index, 1),)))
    groups = [ChannelGroup(name, 10, 1, 10) for name in ("a", "b")]
    return Projection(groups, CostModel(["a", "b"], [10, 10], {"flops": flops.build(), "params": params.build()}))


def test_the_proportions_are_scaled_until_the_budget_is_met():
    assert projection().fit(np.array([1.0, 1.0]), [Budget("flops", 20)]) == Widths({"a": 5, "b": 5})


def test_every_budget_holds():
    assert projection().fit(np.array([1.0, 1.0]), [Budget("flops", 20), Budget("params", 6)]) == Widths(
        {"a": 3, "b": 3}
    )


def test_a_budget_that_steps_do_not_meet_is_used_up_by_an_exchange():
    # At equal ratios 5 and 5 cost 20, and one more channel of a meets 21 exactly.
    assert projection().fit(np.array([1.0, 1.0]), [Budget("flops", 21)]) == Widths({"a": 6, "b": 5})


def test_a_budget_on_latency_is_ignored():
    assert projection().fit(np.array([0.1, 0.2]), [Budget("latency", 1e-9)]) == Widths({"a": 10, "b": 10})


def test_a_budget_under_the_smallest_network_is_refused():
    with pytest.raises(
        BudgetError, match="budget 3flops is under the smallest network of this space, which has 4 flops"
    ):
        projection().fit(np.array([1.0, 1.0]), [Budget("flops", 3)])


def test_a_budget_on_activations_narrows_what_is_live_at_once_alone(resnet20_space: SearchSpace) -> None:
    # Dense, the first stage has three tensors of 16 channels at 32 x 32 alive at once, in float32.
    assert resnet20_space.dense_cost.activations == 3 * 16 * 32 * 32 * 4
    half = Budget.parse("50%activations").resolve(resnet20_space.dense_cost)
    widths = resnet20_space.fit([1.0] * len(resnet20_space.variable), [half])
    cost = resnet20_space.cost(widths)
    assert 0.97 * half.limit < (cost.activations or 0) <= half.limit
    wider = resnet20_space.full | {name: w for name, w in widths.items() if w < resnet20_space.full[name]}
    assert wider == widths  # every other group keeps its dense width
    assert cost.flops > 0.3 * resnet20_space.dense_cost.flops


def test_real_widths_under_a_budget_on_activations_follow_the_form_that_is_largest(resnet20_space: SearchSpace) -> None:
    relaxation, groups = Relaxation(resnet20_space.variable, resnet20_space.cost_model), len(resnet20_space.variable)
    limits = np.array([[np.inf, np.inf, 0.5 * (resnet20_space.dense_cost.activations or 0), np.inf]])
    log2_ratios = relaxation.fit(np.zeros((1, groups)), limits)
    assert relaxation.usage(log2_ratios, limits)[0] == pytest.approx(0.0, abs=0.02)
    slopes = relaxation.slopes(log2_ratios, limits)[0]
    assert slopes.sum() == pytest.approx(1.0)  # the form is linear: widths 1% larger take 1% more
    assert np.count_nonzero(slopes) <= 4  # the groups that are live in its step


@pytest.fixture(scope="module")
def resnet20_space() -> SearchSpace:
    return zoo_space("resnet20", 32)


def test_real_widths_use_the_budget_up_and_are_near_the_legal_ones(resnet20_space: SearchSpace) -> None:
    relaxation = Relaxation(resnet20_space.variable, resnet20_space.cost_model)
    proportions = np.random.default_rng(0).uniform(-1, 1, (8, len(resnet20_space.variable)))
    limits = np.column_stack([np.geomspace(0.06, 0.5, 8) * resnet20_space.dense_cost.flops, np.full(8, np.inf)])
    log2_ratios = relaxation.fit(proportions, limits)
    assert np.abs(relaxation.usage(log2_ratios, limits)).max() < 0.02
    full = np.array([group.width for group in resnet20_space.variable])
    for own, log2_proportions, limit in zip(log2_ratios, proportions, limits[:, 0], strict=True):
        widths = resnet20_space.fit(2 ** (log2_proportions - 1), [Budget("flops", int(limit))])
        legal = np.array([widths[group.name] for group in resnet20_space.variable])
        assert np.abs(full * 2**own - legal).max() < 2.5  # steps of the rounding and of what fills the budget


def test_the_tighter_of_two_budgets_counts(resnet20_space: SearchSpace) -> None:
    relaxation, groups = Relaxation(resnet20_space.variable, resnet20_space.cost_model), len(resnet20_space.variable)
    limits = np.array([[0.5 * resnet20_space.dense_cost.flops, 0.1 * resnet20_space.dense_cost.params]])
    log2_ratios = relaxation.fit(np.zeros((1, groups)), limits)
    widths = {
        group.name: round(group.width * 2**log2)
        for group, log2 in zip(resnet20_space.variable, log2_ratios[0], strict=True)
    }
    assert resnet20_space.cost(widths).params == pytest.approx(limits[0, 1], rel=0.05)
    assert resnet20_space.cost(widths).flops < limits[0, 0]


def test_slopes_are_those_of_the_exact_cost(resnet20_space: SearchSpace) -> None:
    relaxation, groups = Relaxation(resnet20_space.variable, resnet20_space.cost_model), len(resnet20_space.variable)
    limits = np.array([[float(resnet20_space.dense_cost.flops), np.inf]])
    log2_ratios = np.full((1, groups), -1.0)
    slopes = relaxation.slopes(log2_ratios, limits)[0]
    for index in range(0, groups, 3):
        wider = log2_ratios.copy()
        wider[0, index] += 0.01
        grown = relaxation.usage(wider, limits) - relaxation.usage(log2_ratios, limits)
        assert slopes[index] == pytest.approx(grown[0] / 0.01, rel=0.02)
