"""Proposals under a latency budget: predicted inside, whatever else is limited."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from made_up_latency import predictor
from made_up_search import drain, problem_of, search_of
from optuna.trial import FixedTrial

from pruning.base import Goal
from runners.latency.prediction import blocked
from runners.latency.prediction.model import LatencyModel
from runners.trial import Trial, TrialResult, TrialState
from search.latency.predictor import LatencyPredictor
from search.searchers.candidate_space import CandidateSpace
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.space import SearchSpace

LATENCY = Budget("latency", 1e-3)  # of 2.56 ms
PARAMS, FLOPS = Budget("params", 1_200), Budget("flops", 900_000)


class Chance(FixedTrial):
    """Draws every parameter at random, as a sampler would."""

    def __init__(self, seed: int) -> None:
        super().__init__({})
        self.rng = random.Random(seed)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self.rng.uniform(low, high)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self.rng.randint(low, high)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.rng.choice(choices)


def predictor_of(space: SearchSpace, *budgets: Budget) -> LatencyPredictor:
    return predictor(problem_of(space, budgets, allocation="search"))


@pytest.mark.parametrize("budgets", [(LATENCY,), (LATENCY, PARAMS), (FLOPS, LATENCY), (FLOPS, PARAMS, LATENCY)])
def test_every_proposal_is_inside_all_budgets_by_count_and_by_prediction(
    chain_space: SearchSpace, budgets: tuple[Budget, ...]
) -> None:
    own = predictor_of(chain_space, *budgets)
    candidates = CandidateSpace(own.problem, own)
    predicted = []
    for seed in range(40):
        goal = candidates.draw(Chance(seed)).goal
        assert goal.widths is not None
        cost = chain_space.cost(goal.widths)
        assert all(budget.allows(cost) for budget in budgets if budget.quantity != "latency")
        assert all(budget.quantity != "latency" for budget in goal.budgets)
        predicted.append(own.model.predict(goal.widths) * own.model.safety)
    assert max(predicted) <= LATENCY.limit
    assert max(predicted) > 0.7 * LATENCY.limit  # nothing is given away


def test_proposals_lie_on_the_cheap_side_of_steps(chain_space: SearchSpace) -> None:
    own = predictor_of(chain_space, LATENCY)
    stepped = dataclasses.replace(own.model.layers, step=8)
    own = dataclasses.replace(own, model=LatencyModel(stepped, own.model.dense))
    candidates = CandidateSpace(own.problem, own)
    for seed in range(40):
        widths = candidates.draw(Chance(seed)).goal.widths or {}
        assert all(width % 8 == 0 or width < 8 for width in widths.values())  # no step ends below 8
        # A reading of the predicted latency, 3% wide, has its upper end inside.
        assert own.model.predict(widths) * own.model.safety * 1.015 <= LATENCY.limit


def test_proposals_have_no_channels_that_a_runtime_with_blocks_is_slow_with(chain_space: SearchSpace) -> None:
    """Blocks of 8 channels: 17 channels take longer than 32, since only multiples of 4 are convolved in blocks."""
    own = predictor_of(chain_space, LATENCY)
    coefficients = np.zeros((1, blocked.TERMS, blocked.TERMS))
    coefficients[0, blocked.BLOCKED, blocked.FILLED] = coefficients[0, blocked.DIRECT, blocked.FILLED] = 1e-6
    coefficients[0, blocked.PLAIN, blocked.LINEAR] = 3e-6
    layers = dataclasses.replace(own.model.layers, coefficients=coefficients, block=8)
    own = dataclasses.replace(own, model=LatencyModel(layers, own.model.dense))
    candidates = CandidateSpace(own.problem, own)
    used = []
    for seed in range(40):
        widths = candidates.draw(Chance(seed)).goal.widths or {}
        assert all(width % 8 == 0 or width < 8 for width in widths.values())
        used.append(own.model.predict(widths) * own.model.safety * 1.015 / LATENCY.limit)
    assert 0.85 < max(used) <= 1  # the time that odd channels would take is not given away


def test_the_safety_of_the_model_keeps_proposals_further_inside(chain_space: SearchSpace) -> None:
    bold, careful = predictor_of(chain_space, LATENCY), predictor_of(chain_space, LATENCY)
    careful.model.errors[:] = [0.2] * 5
    ratios = [1.0, 1.0, 1.0]
    assert careful.model.predict(careful.fit(ratios, ())) < 0.9 * bold.model.predict(bold.fit(ratios, ()))


def test_where_nothing_is_predicted_inside_the_smallest_is_proposed(chain_space: SearchSpace) -> None:
    slow = predictor_of(chain_space, Budget("latency", 1e-9))
    assert slow.fit([1.0, 1.0, 1.0], ()) == chain_space.smallest


def test_a_latency_that_all_meet_changes_nothing(chain_space: SearchSpace) -> None:
    idle = predictor_of(chain_space, Budget("latency", 1.0), FLOPS)
    assert idle.fit([1.0, 0.5, 0.7], [FLOPS]) == chain_space.fit([1.0, 0.5, 0.7], [FLOPS])


def test_methods_that_find_widths_aim_at_what_uniform_ones_have_inside(chain_space: SearchSpace) -> None:
    own = predictor_of(chain_space, LATENCY)
    (aimed,) = own.for_methods(own.analytic)
    assert aimed.quantity == "flops"
    assert own.model.safety * aimed.limit / 1e9 <= LATENCY.limit < 1.1 * own.model.safety * aimed.limit / 1e9
    assert aimed.limit < own.analytic[0].limit


def test_what_is_not_merely_narrow_is_not_predicted(chain_space: SearchSpace) -> None:
    own = predictor_of(chain_space, LATENCY)
    trial = Trial(0, "l2", Goal())
    plain = TrialResult(trial, TrialState.COMPLETE, 0.9, chain_space.dense_cost, chain_space.full)
    assert own.seconds_of(plain) == pytest.approx(2.56e-3)
    assert own.far_over(plain)
    packed = dataclasses.replace(plain, cost=Cost(1, 1))
    assert own.seconds_of(packed) is None
    assert not own.far_over(packed)


def test_a_baseline_with_widths_of_its_own_aims_at_what_uniform_ones_have_inside(chain_space: SearchSpace) -> None:
    problem = problem_of(chain_space, (LATENCY, FLOPS), ("l2",), trials=6)
    own = predictor(problem)
    (goal,) = [trial.goal for trial in drain(search_of(problem, own)) if trial.baseline == "own"]
    assert goal == Goal(None, own.for_methods(own.analytic))
