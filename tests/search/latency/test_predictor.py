"""Proposals under a latency budget: predicted inside, whatever else is limited."""

import dataclasses
import random

import pytest
from made_up_latency import guide
from search.searchers.study_settings import StudySettings

from pruning.base import Goal
from runners.trial import Trial, TrialResult, TrialState
from search.latency.predictor import check_smallest, check_smallest_briefly, latency_limit
from search.searchers.candidate_space import CandidateSpace
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.errors import BudgetError
from spaces.space import SearchSpace

LATENCY = Budget("latency", 1e-3)  # of 2.56 ms
PARAMS, FLOPS = Budget("params", 1_200), Budget("flops", 900_000)


class Chance:
    """Draws every parameter at random, as a sampler would."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self.rng.uniform(low, high)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return self.rng.randint(low, high)

    def suggest_categorical(self, name: str, choices: object) -> object:
        return self.rng.choice(choices)  # type: ignore[arg-type]


def candidates(space: SearchSpace, *budgets: Budget, factor: float = 1.0, method: str = "l2") -> CandidateSpace:
    settings = StudySettings((method,), allocation="search", guide=guide(space, *budgets, factor=factor))
    return CandidateSpace(settings, space, budgets)


@pytest.mark.parametrize("budgets", [(LATENCY,), (LATENCY, PARAMS), (FLOPS, LATENCY), (FLOPS, PARAMS, LATENCY)])
def test_every_proposal_is_inside_all_budgets_by_count_and_by_prediction(
    chain_space: SearchSpace, budgets: tuple[Budget, ...]
) -> None:
    drawn, own = candidates(chain_space, *budgets), guide(chain_space, *budgets)
    predicted = []
    for seed in range(40):
        goal = drawn.draw(Chance(seed)).goal
        assert goal.widths is not None
        cost = chain_space.cost(goal.widths)
        assert all(budget.allows(cost) for budget in budgets if budget.quantity != "latency")
        assert all(budget.quantity != "latency" for budget in goal.budgets)
        predicted.append(own.seconds(goal.widths) * own.model.safety)
    assert max(predicted) <= LATENCY.limit
    assert max(predicted) > 0.7 * LATENCY.limit  # nothing is given away


def test_the_safety_of_the_model_keeps_proposals_further_inside(chain_space: SearchSpace) -> None:
    bold, careful = guide(chain_space, LATENCY), guide(chain_space, LATENCY)
    careful.model.errors[:] = [0.2] * 5
    objectives = [1.0, 1.0, 1.0]
    assert careful.seconds(careful.fit(objectives, ())) < 0.9 * bold.seconds(bold.fit(objectives, ()))


def test_where_nothing_is_predicted_inside_the_smallest_is_proposed(chain_space: SearchSpace) -> None:
    slow = guide(chain_space, Budget("latency", 1e-9))
    assert slow.fit([1.0, 1.0, 1.0], ()) == chain_space.smallest


def test_a_latency_that_all_meet_changes_nothing(chain_space: SearchSpace) -> None:
    idle = guide(chain_space, Budget("latency", 1.0), FLOPS)
    assert idle.fit([1.0, 0.5, 0.7], [FLOPS]) == chain_space.fit([1.0, 0.5, 0.7], [FLOPS])


def test_methods_that_find_widths_aim_at_what_uniform_ones_have_inside(chain_space: SearchSpace) -> None:
    own = guide(chain_space, LATENCY)
    (aimed,) = own.for_methods(own.analytic)
    assert aimed.quantity == "flops"
    assert own.model.safety * aimed.limit / 1e9 <= LATENCY.limit < 1.1 * own.model.safety * aimed.limit / 1e9
    assert aimed.limit < own.analytic[0].limit


def test_what_is_not_merely_narrow_is_not_predicted(chain_space: SearchSpace) -> None:
    own = guide(chain_space, LATENCY)
    trial = Trial(0, "l2", Goal())
    plain = TrialResult(trial, TrialState.COMPLETE, 0.9, chain_space.dense_cost, chain_space.full)
    assert own.seconds_of(plain) == pytest.approx(2.56e-3)
    assert own.far_over(plain)
    packed = dataclasses.replace(plain, cost=Cost(1, 1))
    assert own.seconds_of(packed) is None
    assert not own.far_over(packed)


def test_a_limit_under_the_smallest_network_names_what_that_measures() -> None:
    check_smallest(2e-3, 1.9e-3, (1.8e-3, 2.1e-3), "cpu:1thread at batch 1")
    with pytest.raises(BudgetError, match=r"budget 1ms is under .* at batch 1: 1\.9 ms \(1\.8 to 2\.1\)"):
        check_smallest(1e-3, 1.9e-3, (1.8e-3, 2.1e-3), "cpu:1thread at batch 1")


def test_on_a_busy_machine_only_a_limit_far_under_a_brief_timing_is_refused() -> None:
    check_smallest_briefly(0.5e-3, 1.9e-3, "cpu:1thread at batch 1")
    with pytest.raises(BudgetError, match=r"budget 0\.4ms is far under .* about 1\.9 ms \(this machine is too busy"):
        check_smallest_briefly(0.4e-3, 1.9e-3, "cpu:1thread at batch 1")


def test_the_limit_is_the_latency_budget() -> None:
    assert latency_limit([FLOPS, LATENCY]) == 1e-3
    assert latency_limit([FLOPS]) == float("inf")
