import math

import pytest
import torch

from pruning.methods.aofp.evidence import RIDGE, Evidence

WIDTH = 12
TRUE = torch.linspace(0.2, 1.8, WIDTH, dtype=torch.float64)  # mean 1
ALIVE = torch.ones(WIDTH, dtype=torch.bool)


def damage(hidden, true=TRUE, alive=WIDTH):
    """Return the errors of sets by the law 0.3 * f^1.5, times the mean share of the hidden channels."""
    return 0.3 * (hidden.shape[1] / alive) ** 1.5 * true[hidden].mean(1)


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda sets, size, among=WIDTH: torch.rand(sets, among, generator=generator).argsort(1)[:, :size]


def test_shares_are_the_ridge_regression_over_the_rows_of_all_sets(draw):
    """The reference solves one least-squares problem over rows that the evidence does not keep."""
    evidence, sets = Evidence(WIDTH), [draw(9, size) for size in (6, 3, 1, 6, 3)]  # a half is six channels
    errors = [damage(hidden) * torch.linspace(0.8, 1.2, 9) for hidden in sets]
    for hidden, error in zip(sets, errors, strict=True):
        evidence.add(hidden, error, WIDTH, random=True)
    rows = [torch.zeros(9, WIDTH).double().scatter_(1, hidden, 1 / hidden.shape[1]) for hidden in sets]
    relative = [e / evidence.damage(hidden.shape[1] / WIDTH) for hidden, e in zip(sets, errors, strict=True)]
    ridge = math.sqrt(RIDGE) * torch.eye(WIDTH, dtype=torch.float64)
    expected = torch.linalg.lstsq(torch.cat([*rows, ridge]), torch.cat([*relative, ridge.sum(1)])[:, None]).solution
    torch.testing.assert_close(evidence.shares(ALIVE), expected[:, 0] / expected.mean())


def test_damage_of_random_sets_is_the_power_law_that_made_them(draw):
    evidence = Evidence(WIDTH)
    assert evidence.damage(0.5) == 0.5
    for size in (1, 2, 6):
        hidden = draw(4000, size)
        evidence.add(hidden, damage(hidden), WIDTH, random=True)
    for fraction in (0.05, 0.5, 0.9):
        assert evidence.damage(fraction) == pytest.approx(0.3 * fraction**1.5, rel=0.02)


def test_sets_among_few_candidates_tell_that_these_do_less_damage(draw):
    evidence = Evidence(WIDTH)
    for size in (6, 3):
        hidden = draw(400, size)
        evidence.add(hidden, damage(hidden), WIDTH, random=True)
    hidden = draw(400, 3, among=6)  # the six channels of the least damage
    evidence.add(hidden, damage(hidden), WIDTH, random=False)
    torch.testing.assert_close(evidence.shares(ALIVE), TRUE, rtol=0, atol=0.06)


def test_after_a_cut_the_channels_left_keep_what_is_known_of_them(draw):
    evidence, left = Evidence(WIDTH), ALIVE.clone()
    hidden = draw(400, 3)
    evidence.add(hidden, damage(hidden), WIDTH, random=True)
    left[:6] = False
    evidence.restart(left)
    expected = TRUE / TRUE[left].mean()
    torch.testing.assert_close(evidence.shares(left)[left], expected[left], rtol=0, atol=0.05)
    hidden = draw(400, 2, among=6) + 6  # the law of the narrower net is another one
    evidence.add(hidden, 2 * damage(hidden, expected, alive=6), 6, random=True)
    torch.testing.assert_close(evidence.shares(left)[left], expected[left], rtol=0, atol=0.05)


def test_without_evidence_all_channels_are_equal_and_broken_errors_are_left_out():
    evidence = Evidence(WIDTH)
    evidence.add(torch.tensor([[0, 1]]), torch.tensor([math.nan]), WIDTH, random=True)
    assert torch.equal(evidence.shares(ALIVE), torch.ones(WIDTH, dtype=torch.float64))
