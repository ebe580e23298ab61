"""The question of a search is resolved once: what cannot be met is refused before any work."""

import dataclasses
import math

import pytest
from chain_space import chain
from made_up_methods import register_all
from made_up_search import problem_of

from configs.schema import RunConfig
from pruning.settings import parse_settings
from runners.config import TrainConfig
from search.problem import Problem, method_settings
from spaces.budget import Budget
from spaces.errors import BudgetError, ConfigError, SlimfrontError

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


def test_the_latency_limit_is_the_latency_budget() -> None:
    assert problem_of(chain(), (FLOPS, Budget("latency", 1e-3)), ("plain",)).latency_limit == 1e-3
    assert problem_of(chain(), (FLOPS,), ("plain",)).latency_limit == float("inf")


def test_latency_is_needed_where_it_is_limited_or_an_axis() -> None:
    assert problem_of(chain(), (FLOPS, Budget("latency", 1e-3)), ("plain",)).needs_latency
    assert problem_of(chain(), (FLOPS,), ("plain",), objective="accuracy,latency").needs_latency
    assert not problem_of(chain(), (FLOPS,), ("plain",)).needs_latency


@pytest.mark.parametrize(
    ("allocation", "method", "message"),
    [
        ("search", "finding", "no method of the run can work at widths that the search chooses: finding only finds"),
        ("method", "plain", "no method of the run can find widths itself: plain only works at given widths"),
    ],
)
def test_an_allocation_that_no_method_can_follow_is_refused(allocation: str, method: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        problem_of(chain(), (FLOPS,), (method,), allocation=allocation)
    assert problem_of(chain(), (FLOPS,), ("plain", "finding"), allocation=allocation).methods == ("plain", "finding")


def test_a_method_without_a_setting_to_search_is_refused_where_it_is_named() -> None:
    with pytest.raises(ConfigError, match="--search-settings names plain, and no setting of plain can be searched"):
        problem_of(chain(), (FLOPS,), ("plain", "tuned"), search_settings="tuned,plain")
    assert problem_of(chain(), (FLOPS,), ("plain", "tuned"), search_settings="all").methods == ("plain", "tuned")


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
        ("tuned.ridge=nan", "tuned.ridge=nan is no float"),
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
        ("tuned", {"ridge": math.nan}, "tuned.ridge=nan is no float"),
        ("plain", {"ridge": 1}, "settings of 'plain' are given, but the search runs tuned, l2, di"),
    ],
)
def test_so_is_a_setting_that_is_no_text(method: str, values: dict[str, float], message: str) -> None:
    with pytest.raises(SlimfrontError) as caught:
        parse_settings(method, values, method_settings(("tuned",)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("method", "way_out"),
    [("di,aofp,csgd", "what csgd acts on; take --method di,aofp"), ("abfp", "what abfp acts on; take --method di$")],
)
def test_methods_that_act_on_steps_of_sgd_refuse_another_optimizer(method: str, way_out: str) -> None:
    config = RunConfig(budget=("50%",), train=TrainConfig(optimizer="adamw"), method="di,aofp")
    assert Problem.resolve(config, chain()).methods == ("di", "aofp")
    with pytest.raises(ConfigError, match=way_out):
        Problem.resolve(dataclasses.replace(config, method=method), chain())
