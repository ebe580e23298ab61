import copy
import math

import pytest
import torch

from pruning.methods.aofp.halving import Decision, Halving, HalvingRules
from spaces.groups import ChannelGroup


def halving(width=8, theta=0.01, batches=40, give_ups=3, lowest=1, divisor=1, conv_groups=1, seed=0):
    group = ChannelGroup("g", width, 1, width, divisor, conv_groups)
    return Halving(group, lowest, HalvingRules(theta, batches, give_ups), seed)


def run_half(search, errors):
    """Credit a half with errors that add up, and check the invariants of every batch."""
    alive, candidates, hidden = search.alive, search.candidates, search.hidden
    while not search.complete:
        drawn = search.drawn
        assert len(drawn) == len(drawn.unique()) == hidden
        assert candidates[drawn].all()
        search.credit(errors[drawn].sum())
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
    search, alive = halving(16, theta=0.5, batches=300), []
    while not search.retired:
        kind, best = run_half(search, errors)
        if kind is Decision.MOVE:
            search.cut(best, best.numel())
        alive.append(search.alive.clone())
    assert torch.equal(search.alive, errors > 0)
    assert all((later <= earlier).all() for earlier, later in zip(alive, alive[1:], strict=False))


def test_a_mean_error_includes_the_other_hidden_channels_and_the_estimate_is_of_a_channel_alone():
    errors = torch.linspace(0, 1, 10, dtype=torch.float64)
    search = halving(10, theta=0.0, batches=40_000)
    while not search.complete:
        search.credit(errors[search.drawn].sum())
    expected = errors + (5 - 1) / (10 - 1) * (errors.sum() - errors)
    assert torch.allclose(search.sums / search.counts, expected, atol=0.02)
    search.decide()
    assert torch.allclose(search.channel_errors, errors, atol=0.04)


def test_an_error_that_is_not_finite_is_left_out():
    search = halving(2, batches=40)
    while not search.complete:
        search.credit(torch.tensor(math.nan if search.scored % 2 else 1.0))
    assert int(search.counts.sum()) == 20
    assert torch.equal(search.sums, search.counts.double())


def test_a_channel_never_drawn_is_not_taken_for_harmless():
    search = halving(4, theta=0.5, batches=1)
    drawn = search.drawn.sort().values
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
        search.credit(errors[search.drawn].sum())
    state = copy.deepcopy(search.state_dict())
    other = halving(16, theta=0.0, seed=99)
    other.load_state_dict(state)
    for resumed in (search, other):
        run_half(resumed, errors)
        run_half(resumed, errors)
    assert torch.equal(search.draws, other.draws)
    assert torch.equal(search.channel_errors, other.channel_errors)
    assert torch.equal(search.candidates, other.candidates)
