"""A result is checked before it is recorded."""

import dataclasses
import math
from typing import Any

import pytest
from chain_space import chain

from pruning.base import Goal
from runners.trial import Trial, TrialResult, TrialState
from search.storage.validation import drop_checkpoints, validate
from spaces.budget import Budget

SPACE = chain()
COST = SPACE.cost(SPACE.smallest)  # of widths 2, 2, 2: params 3 * 2 + 2 * 2 + 2 * 2 + 2 * 10 = 34, flops 16 times that
GOOD = TrialResult(Trial(0, "l2", Goal()), TrialState.COMPLETE, 0.5, COST, SPACE.smallest)
BUDGETS = (Budget("flops", 544), Budget("params", 34), Budget("latency", 1e-3))


def test_a_result_inside_the_budgets_is_left_as_it_is_and_latency_is_measured_later() -> None:
    assert (COST.params, COST.flops) == (34, 544)
    assert validate(GOOD, BUDGETS) == GOOD


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"accuracy": math.nan}, "accuracy nan is not finite"),
        ({"accuracy": math.inf}, "accuracy inf is not finite"),
        ({"accuracy": None}, "accuracy None is not finite"),
        ({"cost": None}, "no cost was measured"),
        ({"state": TrialState.FAILED, "error": "out of memory"}, "out of memory"),
        ({"state": TrialState.FAILED}, "failed without a reason"),
    ],
)
def test_a_result_that_cannot_be_compared_is_failed_with_its_reason(changes: dict[str, Any], error: str) -> None:
    result = validate(dataclasses.replace(GOOD, **changes), BUDGETS)
    assert (result.state, result.error) == (TrialState.FAILED, error)


def test_a_network_over_a_budget_is_failed_and_keeps_its_accuracy() -> None:
    result = validate(GOOD, (Budget("flops", 544), Budget("params", 33)))
    assert (result.state, result.accuracy) == (TrialState.FAILED, 0.5)
    assert result.error == "the network has 34 params, over the budget of 33params"


def test_weights_are_dropped_of_networks_that_no_front_can_have() -> None:
    def network(index: int, flops: int) -> TrialResult:
        cost = dataclasses.replace(COST, flops=flops)
        return dataclasses.replace(GOOD, cost=cost, intermediate_index=index, checkpoint=b"weights")

    result = dataclasses.replace(network(0, 544), intermediate_networks=(network(1, 545), network(2, 544)))
    assert drop_checkpoints(result, BUDGETS).checkpoints == {"0": b"weights", "0.2": b"weights"}
    failed = dataclasses.replace(network(0, 544), state=TrialState.FAILED)
    assert drop_checkpoints(failed, BUDGETS).checkpoints == {}
