import math

import numpy as np
import pytest

from pruning.base import TrainingPlan
from pruning.methods.csgd.collapse import (
    TARGET_DEVIATION,
    deviation_left,
    largest_strength,
    plan_to_deadline,
    plan_with_fixed_epsilon,
)


def steady(rate: float, steps: int, momentum: float = 0.9, nesterov: bool = True) -> TrainingPlan:
    return TrainingPlan((rate,) * steps, momentum, nesterov, weight_decay=1e-4)


def test_without_momentum_deviations_shrink_by_one_factor_a_step() -> None:
    left = deviation_left(steady(0.1, 20, momentum=0.0, nesterov=False), [0.0, 0.5], 20)
    np.testing.assert_allclose(left, [1.0, 0.95**20], rtol=1e-12)


def test_with_momentum_deviations_shrink_ten_times_as_fast() -> None:
    """With the paper's schedule, a strength of 3e-3 at rate 0.03 takes about 15,000 steps to 1e-6."""
    left = float(deviation_left(steady(0.03, 16_000), [0.003], 15_000)[0])
    assert left == pytest.approx(math.exp(-0.03 * 0.003 * 15_000 / 0.1), rel=0.1)


@pytest.mark.parametrize("nesterov", [True, False])
def test_up_to_the_largest_strength_deviations_never_oscillate(nesterov: bool) -> None:
    plan = steady(0.05, 400, nesterov=nesterov)
    bound = largest_strength(plan)
    path = np.stack([deviation_left(plan, [bound, 1.3 * bound], steps) for steps in range(400)])
    assert (path[:, 0] > 0).all()
    assert (path[:, 1] < 0).any()


def test_the_largest_strength_is_that_of_the_specification() -> None:
    assert largest_strength(steady(1.0, 1, nesterov=False)) == pytest.approx(2.63e-3, rel=1e-2)
    assert largest_strength(steady(1.0, 1, nesterov=True)) == pytest.approx(2.77e-3, rel=1e-2)


def test_the_papers_epsilon_is_kept_where_it_is_large_enough() -> None:
    collapse = plan_to_deadline(steady(0.03, 60_000), 0.003, [1.0, 1.0, 1.0], 0.5)
    assert (collapse.epsilon, collapse.direct_share) == (0.003, 0.0)
    assert collapse.residual <= TARGET_DEVIATION


def test_epsilon_is_raised_as_far_as_needed() -> None:
    plan = steady(0.03, 3_000)
    collapse = plan_to_deadline(plan, 0.003, [1.0, 1.0], 0.5)
    assert 0.003 < collapse.epsilon <= largest_strength(plan)
    assert TARGET_DEVIATION / 20 < collapse.residual <= TARGET_DEVIATION
    assert float(deviation_left(plan, [collapse.epsilon], 1_500)[0]) == pytest.approx(collapse.residual)


def test_a_tenth_for_vectors_needs_ten_times_the_strength() -> None:
    whole, tenth = (plan_to_deadline(steady(0.03, 30_000), 0.003, [1.0, factor], 0.5) for factor in (1.0, 0.1))
    assert tenth.epsilon == pytest.approx(10 * whole.epsilon, rel=0.3)


@pytest.mark.parametrize(("steps", "deadline"), [(1, 0.5), (100, 0.5), (600, 0.2), (400, 1.0)])
def test_where_momentum_is_too_slow_deviations_are_removed_directly(steps: int, deadline: float) -> None:
    collapse = plan_to_deadline(steady(0.03, steps), 0.003, [1.0], deadline)
    assert collapse.epsilon == 0.0
    assert collapse.steps == max(1, round(deadline * steps))
    assert (1 - collapse.direct_share) ** collapse.steps == pytest.approx(TARGET_DEVIATION)


def test_running_statistics_get_time_to_settle() -> None:
    assert plan_to_deadline(steady(0.03, 2_000), 0.003, [1.0], 1.0).steps == 2_000 - 132


def test_a_fixed_epsilon_has_the_residual_of_the_slowest_kind() -> None:
    collapse = plan_with_fixed_epsilon(steady(0.03, 1_000), 0.003, [1.0, 0.1])
    assert (collapse.epsilon, collapse.steps) == (0.003, 1_000)
    assert collapse.residual == pytest.approx(float(deviation_left(steady(0.03, 1_000), [0.0003], 1_000)[0]))
