import copy
import math

import numpy as np
import pytest
import torch

from pruning.methods.aofp.halving import Decision, Halving, HalvingRules
from spaces.groups import ChannelGroup


def halving(width=8, theta=0.01, batches=40, give_ups=3, few_sets=1, seed=0, lowest=1, divisor=1, conv_groups=1):
    group = ChannelGroup("g", width, 1, width, divisor, conv_groups)
    return Halving(group, lowest, HalvingRules(theta, batches, give_ups, few_sets), seed)


def credit(search, errors):
    """Credit a batch with errors that add up."""
    search.credit(torch.stack([errors[hidden].sum() for hidden in search.sets]))


def run_half(search, errors):
    """Credit a half with errors that add up, and check the invariants of every batch."""
    alive, candidates, hidden = search.alive, search.candidates, search.hidden
    while not search.complete:
        drawn, *others = search.sets
        assert len(drawn) == len(drawn.unique()) == hidden
        assert candidates[drawn].all()
        assert all(len(hidden_set) == len(hidden_set.unique()) and alive[hidden_set].all() for hidden_set in others)
        credit(search, errors)
    assert not (candidates & ~alive).any()
    assert int(search.counts.sum()) == search.scored * hidden
    return search.decide()


@pytest.mark.parametrize(("width", "sizes"), [(50, [50, 25, 12, 6, 3]), (64, [64, 32, 16, 8, 4, 2]), (3, [3])])
def test_a_search_without_a_cut_halves_down_to_two_or_three_and_starts_again(width, sizes):
    search, visited = halving(width, theta=0.0), []
    while search.failures == 0:
        visited.append(int(search.candidates.sum()))
        kind, _ = run_half(search, torch.rand(width, dtype=torch.float64))
        assert search.sums.sum() == search.counts.sum() == search.scored == 0
    assert visited == sizes
    assert kind is Decision.GIVE_UP
    assert torch.equal(search.candidates, search.alive)
    assert search.alive.all()  # theta 0 cuts nothing, even where all errors are 0


def test_theta_is_strict():
    search = halving(theta=0.0)
    assert run_half(search, torch.zeros(8, dtype=torch.float64))[0] is Decision.HALVE


def test_an_infinite_theta_finds_half_in_the_first_half():
    search = halving(9, theta=math.inf)
    kind, best = run_half(search, torch.rand(9, dtype=torch.float64))
    assert kind is Decision.MOVE
    search.cut(best, best.numel())
    assert search.width == 9 - 9 // 2
    assert torch.equal(search.candidates, search.alive)


def test_harmless_channels_and_no_others_are_cut():
    errors = torch.tensor([0.0, 5.0] * 8, dtype=torch.float64)
    search, alive = halving(16, theta=0.5, batches=300, few_sets=0), []
    while not search.retired:
        kind, best = run_half(search, errors)
        if kind is Decision.MOVE:
            search.cut(best, best.numel())
        alive.append(search.alive.clone())
    assert torch.equal(search.alive, errors > 0)
    assert all((later <= earlier).all() for earlier, later in zip(alive, alive[1:], strict=False))


def test_a_mean_error_includes_the_other_hidden_channels_and_a_share_is_of_a_channel_alone():
    errors = torch.linspace(0, 1, 10, dtype=torch.float64)
    search = halving(10, theta=0.0, batches=5000)
    while not search.complete:
        credit(search, errors)
    expected = errors + (5 - 1) / (10 - 1) * (errors.sum() - errors)
    assert torch.allclose(search.sums / search.counts, expected, atol=0.05)
    assert torch.allclose(search.shares(), errors / errors.mean(), atol=0.02)


def test_shares_of_all_halves_rank_better_than_the_last_half_alone():
    """The damage of a set grows faster than the number of its channels, and every batch is 30% off."""
    generator = torch.Generator().manual_seed(1)
    true = torch.rand(32, generator=generator).double()
    search = halving(32, theta=0.0, batches=6, give_ups=10**6, few_sets=3, seed=3)

    def correlation(shares, known):
        ranks = torch.stack([values[known].argsort().argsort() for values in (shares, true)])
        return float(torch.corrcoef(ranks.double())[0, 1])

    for _ in range(40):
        while not search.complete:
            errors = torch.stack([true[hidden].mean() * (len(hidden) / 32) ** 1.5 for hidden in search.sets])
            search.credit(errors * (1 + 0.3 * torch.randn(len(errors), generator=generator).double()))
        means, candidates = search._means(), search.candidates.clone()
        search.decide()
        if int(candidates.sum()) == 32:
            of_a_half = correlation(means.nan_to_num(posinf=2.0), candidates)
    assert correlation(search.shares(), search.alive) > max(0.8, of_a_half + 0.2)


def test_damages_are_those_measured_at_the_depths():
    errors = torch.linspace(0.1, 1, 16, dtype=torch.float64)
    search = halving(16, theta=0.0, batches=60, few_sets=3)
    for _ in range(2):  # the first half has no order of the channels yet
        while not search.complete:
            search.credit(torch.stack([(errors[hidden].sum() / errors.sum()) ** 2 for hidden in search.sets]))
        search.decide()
    damages, rising = search.damages(), errors.sort().values
    for removed in (4, 8, 12, 14):
        least = float((rising[:removed].sum() / errors.sum()) ** 2)
        assert damages[removed] == pytest.approx(least, rel=0.02)
    assert damages[0] == 0
    assert damages[16] == 1
    assert (np.diff(damages) >= 0).all()


def test_six_batches_measure_every_depth():
    """Damages grow faster than they add up, and hiding most channels shows by how much."""
    errors = torch.linspace(0.1, 1, 16, dtype=torch.float64)
    search = halving(16, theta=0.0, batches=20, few_sets=7)
    for _ in range(6):
        search.credit(torch.stack([(errors[hidden].sum() / errors.sum()) ** 2 for hidden in search.sets]))
    damages = search.damages()
    for removed in (12, 14):
        assert damages[removed] == pytest.approx(float((errors[:removed].sum() / errors.sum()) ** 2), rel=0.1)


def test_an_error_that_is_not_finite_is_left_out():
    search = halving(2, batches=40)
    while not search.complete:
        search.credit(torch.tensor([math.nan if search.scored % 2 else 1.0, *[1.0] * (len(search.sets) - 1)]))
    assert int(search.counts.sum()) == 20
    assert torch.equal(search.sums, search.counts.double())


def test_a_channel_never_drawn_is_not_taken_for_harmless():
    search = halving(4, theta=0.5, batches=1)
    drawn = search.sets[0].sort().values
    _, best = run_half(search, torch.zeros(4, dtype=torch.float64))
    assert torch.equal(best.flatten().sort().values, drawn)


def test_conv_groups_stay_equal_and_widths_legal():
    search = halving(24, theta=math.inf, divisor=4, conv_groups=2, lowest=8)
    for width in (12, 8):
        _, best = run_half(search, torch.rand(24, dtype=torch.float64))
        search.cut(best, search.width - search.width_after(search.hidden))
        assert search.width == width
        assert search.alive.view(2, 12).sum(1).tolist() == [width // 2] * 2
    assert search.retired  # at its lowest


def test_a_divisor_ends_the_halving_where_no_legal_step_is_left():
    search = halving(32, theta=0.0, divisor=8)
    run_half(search, torch.rand(32, dtype=torch.float64))
    assert (search.hidden, search.failures) == (8, 0)
    run_half(search, torch.rand(32, dtype=torch.float64))
    assert search.failures == 1


@pytest.mark.parametrize("width", [1, 2])
def test_a_group_that_cannot_lose_a_channel_is_retired_from_the_start(width):
    assert halving(width, lowest=width).retired


def test_consecutive_searches_without_a_cut_retire_a_group():
    search = halving(2, theta=0.0, give_ups=2)
    for failures in (1, 2):
        run_half(search, torch.ones(2, dtype=torch.float64))
        assert search.failures == failures
    assert search.retired


def test_the_same_seed_draws_the_same_channels():
    assert torch.equal(halving(seed=5).draws, halving(seed=5).draws)
    assert not torch.equal(halving(seed=5).draws, halving(seed=6).draws)


def test_a_search_goes_on_from_its_state_as_if_never_interrupted():
    errors = torch.rand(16, dtype=torch.float64)
    search = halving(16, theta=0.0)
    run_half(search, errors)
    for _ in range(7):
        credit(search, errors)
    state = copy.deepcopy(search.state_dict())
    other = halving(16, theta=0.0, seed=99)
    other.load_state_dict(state)
    for resumed in (search, other):
        run_half(resumed, errors)
        run_half(resumed, errors)
    assert torch.equal(search.draws, other.draws)
    assert torch.equal(search.shares(), other.shares())
    assert (search.damages() == other.damages()).all()
    assert torch.equal(search.candidates, other.candidates)
