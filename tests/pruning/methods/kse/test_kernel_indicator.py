import numpy as np
import pytest
import torch

from pruning.base import PruningError
from pruning.methods.kse import kernel_indicator
from pruning.methods.kse.kernel_indicator import LevelRule, channel_kernels, entropy, indicator, sparsity

EXACT = {"rtol": 0, "atol": 1e-12}  # float64


def kernels(channels=6, count=10, size=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, count, size, generator=generator, dtype=torch.float64)


def reference_entropy(points, neighbours=5):
    """Compute the entropy by the formula, kernel by kernel."""
    found = []
    for own in points.numpy():
        count = len(own)
        nearest = min(neighbours, count - 1)
        sums = np.array([np.sort(np.linalg.norm(own - kernel, axis=1))[1 : nearest + 1].sum() for kernel in own])
        shares = sums / sums.sum()
        found.append(-(shares * np.log2(shares)).sum())
    return torch.tensor(found)


def table(rule, count=64):
    """Return all numbers of kernels that indicators from 0 to 1 give."""
    reached = rule.level_of(np.append(np.random.default_rng(0).random(100_000), [0.0, 1.0]))
    return sorted(set(rule.kernels(reached, count).tolist()))


@pytest.mark.parametrize(
    ("count", "shift", "numbers"),
    [
        (2, 0, [0, 64]),
        (3, 0, [0, 32, 64]),
        (4, 0, [0, 16, 32, 64]),
        (4, 1, [0, 8, 16, 64]),
        (5, 0, [0, 8, 16, 32, 64]),
        (5, 1, [0, 4, 8, 16, 64]),
        (6, 0, [0, 4, 8, 16, 32, 64]),
        (6, 1, [0, 2, 4, 8, 16, 64]),
    ],
)
def test_levels_are_those_of_the_paper(count, shift, numbers):
    assert table(LevelRule(count, shift)) == numbers


@pytest.mark.parametrize("kept", [1, 2, 6, 7, 16, 64, 100])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 8])
def test_more_indicator_means_no_fewer_kernels_and_more_shift_no_more(count, kept):
    values = np.linspace(0, 1, 1001)
    before = np.full(1001, kept)
    for shift in range(8):
        rule = LevelRule(count, shift)
        found = rule.kernels(rule.level_of(values), kept)
        assert (np.diff(found) >= 0).all()
        assert found.min() == 0
        assert found.max() == kept
        assert (found <= before).all()
        before = found


def test_indicators_outside_are_clipped():
    assert LevelRule(4, 0).level_of(np.array([-1.0, 0.0, 7.0])).tolist() == [0, 0, 4]


@pytest.mark.parametrize("size", [1, 4, 9])
@pytest.mark.parametrize("count", [2, 5, 6, 40])
def test_entropy_is_the_formula(size, count):
    points = kernels(count=count, size=size)
    torch.testing.assert_close(entropy(points), reference_entropy(points), rtol=0, atol=1e-12)


def test_entropy_does_not_depend_on_the_chunk_size(monkeypatch):
    points = kernels(channels=7)
    whole = entropy(points)
    monkeypatch.setattr(kernel_indicator, "CHUNK_BYTES", 8 * 10 * 10 * 2)
    assert torch.equal(entropy(points), whole)


@pytest.mark.parametrize("size", [1, 9])
def test_entropy_stays_in_bounds_and_under_scale_shift_and_order(size):
    points = kernels(size=size)
    found = entropy(points)
    assert (found >= 0).all()
    assert (found <= np.log2(10)).all()
    torch.testing.assert_close(entropy(3.7 * points), found, **EXACT)
    torch.testing.assert_close(entropy(points + torch.arange(size) - 2.0), found, **EXACT)
    torch.testing.assert_close(entropy(points[:, torch.randperm(10)]), found, **EXACT)


def test_sparsity_is_the_l1_mass_and_scales():
    points = kernels()
    torch.testing.assert_close(sparsity(points), points.abs().sum((1, 2)), **EXACT)
    torch.testing.assert_close(sparsity(2.5 * points), 2.5 * sparsity(points), rtol=1e-12, atol=0)


def test_a_layer_on_another_scale_has_the_same_indicators():
    points = kernels()
    one, other = (indicator(sparsity(kernels), entropy(kernels)) for kernels in (points, 1e-3 * points))
    np.testing.assert_allclose(one, other, atol=1e-9)  # the range of the entropy is small, its rounding is stretched
    assert (LevelRule(4, 0).level_of(one) == LevelRule(4, 0).level_of(other)).all()


@pytest.mark.parametrize("renormalised", [False, True])
def test_a_channel_of_zeros_is_the_least(renormalised):
    points = kernels()
    points[3] = 0
    found = indicator(sparsity(points), entropy(points), 1.0, renormalised)
    assert found[3] == 0
    assert LevelRule(4, 0).level_of(found)[3] == 0
    assert ((found >= 0) & (found <= 1)).all()


def test_the_indicator_is_the_formula():
    mass, spread = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([3.0, 2.0, 2.5])
    # Stretched: mass 0, 1/4, 1; entropy 1, 0, 1/2.
    np.testing.assert_allclose(indicator(mass, spread), np.sqrt([0, 0.25, 1 / 1.5]), atol=1e-15)
    np.testing.assert_allclose(indicator(mass, spread, 2.0), np.sqrt([0, 0.25, 1 / 2]), atol=1e-15)
    top = np.sqrt(1 / 1.5)
    np.testing.assert_allclose(indicator(mass, spread, 1.0, True), [0, 0.5 / top, 1], atol=1e-15)


@pytest.mark.parametrize("size", [1, 9])
def test_odd_layers_have_defined_indicators(size):
    equal = torch.ones(3, 8, size)
    assert entropy(equal).tolist() == [3.0] * 3  # the limit of equal kernels that noise moves apart
    assert indicator(sparsity(equal), entropy(equal)).tolist() == [1.0] * 3
    zero = torch.zeros(3, 8, size)
    assert indicator(sparsity(zero), entropy(zero)).tolist() == [1.0] * 3
    assert entropy(torch.randn(4, 1, size)).tolist() == [0.0] * 4
    single = torch.randn(1, 8, size)
    assert indicator(sparsity(single), entropy(single)).tolist() == [1.0]
    coinciding = torch.cat([torch.zeros(2, 6, size), torch.randn(2, 2, size)], 1)  # 6 of 8: distance 0 to 5 others
    found = entropy(coinciding)
    assert (found >= 0).all()
    assert (found <= 1 + 1e-12).all()  # only two kernels have a share


def test_kernels_that_are_not_finite_are_refused():
    points = kernels()
    points[0, 0, 0] = torch.nan
    with pytest.raises(PruningError, match="not finite"):
        indicator(sparsity(points), entropy(points))


def test_kernels_belong_to_the_input_channel_that_they_read():
    weight = torch.arange(4 * 3 * 4).reshape(4, 3, 2, 2)
    found = channel_kernels(weight)
    assert found.shape == (3, 4, 4)
    assert torch.equal(found[2, 1].reshape(2, 2), weight[1, 2])
    grouped = channel_kernels(weight, groups=2)  # 6 inputs, 2 outputs in each group
    assert grouped.shape == (6, 2, 4)
    assert torch.equal(grouped[4, 1].reshape(2, 2), weight[3, 1])
