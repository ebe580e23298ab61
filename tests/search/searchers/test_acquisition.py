"""Proposals go where the front is expected to grow."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from search.searchers.acquisition import Proposer, Seen, expected_gain, level
from search.searchers.structure import Relaxation, structure_of
from spaces.space import ModelSpec, SearchSpace
from spaces.tracing.tracer import trace
from spaces.zoo.models import build


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return trace(build(ModelSpec("resnet20", 10, (3, 32, 32))), torch.zeros(1, 3, 32, 32))


@pytest.fixture
def proposer(space: SearchSpace) -> Proposer:
    base = space.dense_cost.flops / 2
    return Proposer(structure_of(space), Relaxation(space), lambda share: (share * base, math.inf), 0.06)


def baselines(space: SearchSpace, proposer: Proposer) -> list[Seen]:
    """Uniform widths at four costs."""
    seen = []
    for share in (1.0, 0.4, 0.16, 0.06):
        kept = proposer.relaxation.fit(np.zeros((1, len(space.variable))), np.array([proposer.limits(share)]))[0]
        seen.append(Seen(tuple(kept), share, accuracy=0.9 + 0.1 * math.log10(share)))
    return seen


def test_the_expected_gain_is_the_mean_growth_of_the_area_under_the_front() -> None:
    front = [(-0.5, 0.4, ()), (0.2, 0.9, ())]
    mean, deviation, cost = 0.7, 0.2, -0.1

    def growth(value: float) -> float:
        return 0.3 * max(0.0, value - 0.4) + 0.801 * max(0.0, value - 0.9)

    expected = quad(lambda v: growth(v) * norm.pdf(v, mean, deviation), -1, 3, networks=[0.4, 0.9])[0]
    found = expected_gain(front, np.array([cost]), np.array([mean]), np.array([deviation]))
    assert found[0] == pytest.approx(expected, rel=1e-4)


def test_a_network_that_is_surely_below_the_front_gains_nothing() -> None:
    gains = expected_gain([(-1.0, 0.5, ())], np.array([0.0, 0.0]), np.array([0.4, 0.6]), np.array([1e-9, 1e-9]))
    assert gains[0] == pytest.approx(0.0, abs=1e-9)
    assert gains[1] == pytest.approx(0.1 * 1.001, rel=1e-6)


def test_a_fraction_that_is_given_is_kept(space: SearchSpace, proposer: Proposer) -> None:
    proposal = proposer.propose(baselines(space, proposer), 0.3)
    assert proposal.fraction == 0.3
    assert proposal.shares.shape == (len(space.variable),)
    assert np.abs(proposal.shares).max() <= proposer.reach


def test_proposals_spread_over_the_budgets(space: SearchSpace, proposer: Proposer) -> None:
    seen = baselines(space, proposer)
    for _ in range(12):
        proposal = proposer.propose(seen)
        kept = proposer.relaxation.fit(proposal.shares[None], np.array([proposer.limits(proposal.fraction)]))[0]
        seen.append(Seen(tuple(kept), proposal.fraction))  # all of them run at once
    places = [math.log(each.fraction) / math.log(0.06) for each in seen[4:]]
    assert len({round(3 * place) for place in places}) == 4
    assert len({each.kept for each in seen}) == len(seen)


def test_the_structure_that_pays_is_found_within_a_few_trials(space: SearchSpace, proposer: Proposer) -> None:
    """Late groups matter ten times as much as early ones."""
    worth = np.linspace(0.1, 1.0, len(space.variable)) / len(space.variable)
    seen = [
        Seen(e.kept, e.fraction, accuracy=0.95 * math.exp(np.dot(worth, e.kept))) for e in baselines(space, proposer)
    ]
    for _ in range(10):
        proposal = proposer.propose(seen, 0.2)
        kept = proposer.relaxation.fit(proposal.shares[None], np.array([proposer.limits(0.2)]))[0]
        seen.append(Seen(tuple(kept), 0.2, accuracy=0.95 * math.exp(np.dot(worth, kept))))
    kept = proposer.relaxation.fit(np.zeros((1, len(worth))), np.array([proposer.limits(0.2)]))[0]
    uniform = 0.95 * math.exp(np.dot(worth, kept))
    assert max(each.accuracy or 0.0 for each in seen[4:]) > uniform + 0.02


def test_levels_grow_with_accuracy_and_take_the_ends() -> None:
    assert level(0.0) == 0.0
    assert level(1.0) == pytest.approx(math.pi / 2)
    assert level(0.4) < level(0.5)
