"""The question of a search is resolved once: what cannot be met is refused before any work."""

import math

import pytest
from chain_space import chain
from made_up_methods import register_all
from made_up_search import problem_of

from pruning.settings import parse_settings
from search.problem import method_settings
from spaces.budget import Budget
from spaces.errors import BudgetError, SlimfrontError

FLOPS = Budget("flops", 20_000)


@pytest.fixture(autouse=True)
def _methods(monkeypatch: pytest.MonkeyPatch) -> None:
    register_all(monkeypatch)


def test_relative_budgets_are_taken_of_the_dense_network() -> None:
    space = chain()
    problem = problem_of(space, (Budget.parse("50%"),), ("plain",), trials=3)
    assert problem.budgets == (Budget("flops", space.dense_cost.flops // 2),)


def test_a_budget_under_the_smallest_network_is_refused_at_once() -> None:
    with pytest.raises(BudgetError, match="smallest network"):
        problem_of(chain(), (Budget("flops", 10),), ("plain",))
    with pytest.raises(BudgetError, match="no budget given; write --budget with 0.5gflops"):
        problem_of(chain(), (), ("plain",))


def test_no_trials_is_an_error() -> None:
    with pytest.raises(SlimfrontError, match="trials.*0"):
        problem_of(chain(), (FLOPS,), ("plain",), trials=0)


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ("tuned.ridge=much", "tuned.ridge=much is no float; give a number from 0.001 to 10.0"),
        ("tuned.ridge=11", "tuned.ridge=11 is out of bounds"),
        ("tuned.images=2.5", "tuned.images=2.5 is no int"),
        ("tuned.images=nan", "tuned.images=nan is no int"),
        ("tuned.ridge=nan", "tuned.ridge=nan is out of bounds"),
        ("tuned.way=gredy", "tuned.way=gredy is out of bounds; give one of greedy, closed"),
        ("tuned.fast=maybe", "tuned.fast=maybe is no bool"),
        ("tuned.rigde=1", "unknown setting of tuned 'rigde'; did you mean ridge"),
        ("plain.ridge=1", "--set 'plain.ridge=1' is for method 'plain', which this run does not use"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_value_and_rule(fixed: str, message: str) -> None:
    with pytest.raises(SlimfrontError) as caught:
        problem_of(chain(), (FLOPS,), ("tuned",), set=(fixed,))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("tuned", {"ridge": 11}, "tuned.ridge=11 is out of bounds"),
        ("tuned", {"images": math.nan}, "tuned.images=nan is no int"),
        ("tuned", {"ridge": math.nan}, "tuned.ridge=nan is out of bounds"),
        ("plain", {"ridge": 1}, "settings of 'plain' are given, but the search runs tuned, l2"),
    ],
)
def test_so_is_a_setting_that_is_no_text(method: str, values: dict[str, float], message: str) -> None:
    with pytest.raises(SlimfrontError) as caught:
        parse_settings(method, values, method_settings(("tuned",)))
    assert message in str(caught.value)
