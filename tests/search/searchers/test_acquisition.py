"""Proposals go where the front is expected to grow."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from traced_zoo import zoo_space

from search.searchers.acquisition import REFITTED, Acquisition, expected_hypervolume_improvement
from search.searchers.observation import Observation
from search.searchers.structure import structure_of
from search.searchers.surrogate import Deviations
from spaces.projection import Floats, Relaxation
from spaces.space import SearchSpace


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return zoo_space("resnet20", 32)


@pytest.fixture
def acquisition(space: SearchSpace) -> Acquisition:
    base = space.dense_cost.flops / 2
    return Acquisition(
        structure_of(space),
        Relaxation(space.variable, space.cost_model),
        lambda fraction: (fraction * base, math.inf),
        0.06,
    )


def log2_ratios_of(acquisition: Acquisition, proportions: Floats, fraction: float) -> tuple[float, ...]:
    """Return the log2 width ratios that proportions, shape (groups,), have at a budget fraction."""
    limits = np.array([acquisition.limits(fraction)])
    return tuple(acquisition.relaxation.fit(proportions[None], limits)[0].tolist())


def baselines(space: SearchSpace, acquisition: Acquisition) -> list[Observation]:
    """Uniform widths at four costs."""
    uniform = np.zeros(len(space.variable))
    return [
        Observation(
            "",
            fraction,
            accuracy=0.9 + 0.1 * math.log10(fraction),
            log2_ratios=log2_ratios_of(acquisition, uniform, fraction),
        )
        for fraction in (1.0, 0.4, 0.16, 0.06)
    ]


def test_the_expected_hypervolume_improvement_is_the_mean_growth_of_the_area_under_the_front() -> None:
    front = [(-0.5, 0.4, ()), (0.2, 0.9, ())]
    mean, deviation, cost = 0.7, 0.2, -0.1

    def growth(value: float) -> float:
        return 0.3 * max(0.0, value - 0.4) + 0.801 * max(0.0, value - 0.9)

    expected = quad(lambda v: growth(v) * norm.pdf(v, mean, deviation), -1, 3, points=[0.4, 0.9])[0]
    found = expected_hypervolume_improvement(front, np.array([cost]), np.array([mean]), np.array([deviation]))
    assert found[0] == pytest.approx(expected, rel=1e-4)


def test_a_network_that_is_surely_below_the_front_gains_nothing() -> None:
    front, deviations = [(-1.0, 0.5, ())], np.array([1e-9, 1e-9])
    gains = expected_hypervolume_improvement(front, np.array([0.0, 0.0]), np.array([0.4, 0.6]), deviations)
    assert gains[0] == pytest.approx(0.0, abs=1e-9)
    assert gains[1] == pytest.approx(0.1 * 1.001, rel=1e-6)


def test_a_fraction_that_is_given_is_kept(space: SearchSpace, acquisition: Acquisition) -> None:
    proposal = acquisition.propose(baselines(space, acquisition), 0.3)
    assert proposal.fraction == 0.3
    assert proposal.proportions.shape == (len(space.variable),)
    assert np.abs(proposal.proportions).max() <= acquisition.max_log2


def test_proposals_spread_over_the_budgets(space: SearchSpace, acquisition: Acquisition) -> None:
    observed = baselines(space, acquisition)
    for _ in range(12):
        proposal = acquisition.propose(observed)
        log2_ratios = log2_ratios_of(acquisition, proposal.proportions, proposal.fraction)
        observed.append(Observation("", proposal.fraction, log2_ratios=log2_ratios))  # all of them run at once
    places = [math.log(observation.fraction) / math.log(0.06) for observation in observed[4:]]
    assert len({round(3 * place) for place in places}) == 4
    assert len({observation.log2_ratios for observation in observed}) == len(observed)


def test_the_structure_that_pays_is_found_within_a_few_trials(space: SearchSpace, acquisition: Acquisition) -> None:
    """Late groups matter ten times as much as early ones."""
    worth = np.linspace(0.1, 1.0, len(space.variable)) / len(space.variable)

    def accuracy(log2_ratios: tuple[float, ...]) -> float:
        return 0.95 * math.exp(np.dot(worth, log2_ratios))

    observed = [
        dataclasses.replace(baseline, accuracy=accuracy(baseline.log2_ratios))
        for baseline in baselines(space, acquisition)
    ]
    for _ in range(10):
        log2_ratios = log2_ratios_of(acquisition, acquisition.propose(observed, 0.2).proportions, 0.2)
        observed.append(Observation("", 0.2, accuracy(log2_ratios), log2_ratios=log2_ratios))
    uniform = accuracy(log2_ratios_of(acquisition, np.zeros(len(worth)), 0.2))
    assert max(observation.accuracy or 0.0 for observation in observed[4:]) > uniform + 0.02


def test_with_many_observations_the_prior_is_chosen_anew_at_every_tenth_proposal(
    space: SearchSpace, acquisition: Acquisition, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = baselines(space, acquisition)
    chosen: list[int] = []

    def most_likely(parts: Sequence[Floats], y: Floats) -> Deviations:
        chosen.append(len(y))
        return Deviations((1.0,) * len(parts), 0.06)

    monkeypatch.setattr("search.searchers.surrogate._maximum_likelihood", most_likely)
    monkeypatch.setattr("search.searchers.acquisition.MOST", len(observed))
    for _ in range(2):
        acquisition.propose(observed[1:])
    for _ in range(2 * REFITTED):
        acquisition.propose(observed)
    assert chosen == [3, 3, 4, 4]
