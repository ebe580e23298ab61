import numpy as np
import pytest

from spaces.budget import Budget
from spaces.cost import CostModel, Form, PolynomialBuilder
from spaces.errors import BudgetError
from spaces.groups import ChannelGroup
from spaces.projection import Projection
from spaces.widths import Widths


def projection() -> Projection:
    """Two groups of 10 channels; a network costs width a + 3 width b FLOPs, and one parameter per channel."""
    flops, params = PolynomialBuilder(2), PolynomialBuilder(2)
    for index, coefficient in enumerate((1, 3)):
        flops.add(coefficient, Form(0, ((index, 1),)))
        params.add(1, Form(0, ((index, 1),)))
    groups = [ChannelGroup(name, 10, 1, 10) for name in ("a", "b")]
    return Projection(groups, CostModel(["a", "b"], [10, 10], flops.build(), params.build()))


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
