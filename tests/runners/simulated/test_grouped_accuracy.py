"""The closed form over the groups of a real network has known best widths, and its importances differ by seed."""

import numpy as np
import pytest
from traced_zoo import zoo_space

from pruning.base import Goal
from runners.simulated.grouped_accuracy import GroupedAccuracy
from runners.trial import Trial
from spaces.budget import Budget
from spaces.space import SearchSpace


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return zoo_space("resnet20", 32)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_no_widths_within_a_budget_are_better_than_the_best(space: SearchSpace, share: float) -> None:
    truth = GroupedAccuracy.random(space, 3)
    limit = int(share * space.dense_cost.flops)
    best = truth.best_at(limit)
    generator = np.random.default_rng(0)
    found = [truth.accuracy(space.fit([1.0] * len(space.variable), [Budget("flops", limit)]))]
    for _ in range(40):
        found.append(
            truth.accuracy(space.fit(generator.uniform(0.2, 1, len(space.variable)), [Budget("flops", limit)]))
        )
    assert max(found) < best


def test_the_best_widths_are_reached_by_fitting_where_they_are_known(space: SearchSpace) -> None:
    flat = GroupedAccuracy(space, dict.fromkeys(space.full, 1.0))
    assert flat.best_at(2 * space.dense_cost.flops) == pytest.approx(0.93)
    # Where one group has all the importance, it gets the whole cost that the others leave at their smallest widths.
    name = space.variable[0].name
    alone = GroupedAccuracy(space, {group: float(group == name) for group in space.full})
    limit = space.cost(space.smallest | {name: space.full[name] // 2}).flops
    assert alone.best_at(limit) == pytest.approx(
        alone.accuracy(space.smallest | {name: space.full[name] // 2}), rel=1e-4
    )


def test_less_than_the_smallest_network_has_no_best(space: SearchSpace) -> None:
    with pytest.raises(ValueError, match="less than the smallest network's"):
        GroupedAccuracy.random(space, 0).best_at(space.smallest_cost.flops - 1)


def test_the_trend_over_depth_differs_in_sign_from_seed_to_seed(space: SearchSpace) -> None:
    depth = np.linspace(-1, 1, len(space.variable))
    trends = [
        np.dot(depth, np.log(list(GroupedAccuracy.random(space, seed).importance.values()))) for seed in range(12)
    ]
    assert min(trends) < 0 < max(trends)


def test_the_noise_of_a_trial_depends_on_its_seed_alone(space: SearchSpace) -> None:
    truth = GroupedAccuracy.random(space, 0, noise_std=0.01)
    goal = Goal(budgets=(Budget.parse("20%"),))
    first, again, other = (truth(Trial(0, "l2", goal, seed=seed)).accuracy for seed in (1, 1, 2))
    assert first == again != other
    assert abs(first - truth.accuracy(truth(Trial(0, "l2", goal)).widths)) < 0.05
