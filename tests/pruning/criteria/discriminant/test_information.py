"""Invariants of Discriminant Information; each closed form is compared with the definition."""

import pytest
import torch
from made_up_moments import CHANNELS, CLASSES, SAMPLES, features_and_labels, moments_of
from torch import Tensor

from pruning.calibration.flattened_maps import label_codes
from pruning.calibration.second_moments import MomentAccumulator, Moments, ridge_for
from pruning.criteria.discriminant.information import RidgeInformation


def _discriminant(moments: Moments, ridge: float, unit: bool = True) -> RidgeInformation:
    return RidgeInformation(moments.scatter, moments.between(unit), ridge)


def _information(features: Tensor, labels: Tensor, ridge: float, unit: bool = True) -> float:
    """By the definition, from the samples."""
    centred = features - features.mean(dim=0)
    targets = centred.T @ label_codes(labels, CLASSES, unit)
    system = centred.T @ centred + ridge * torch.eye(features.shape[1], dtype=torch.float64)
    return float(torch.trace(torch.linalg.inv(system) @ targets @ targets.T))


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
def test_primal_dual_and_ridge_loss_are_one_number(unit: bool, ridge: float) -> None:
    features, labels = features_and_labels()
    moments, codes = moments_of(features, labels), label_codes(labels, CLASSES, unit)
    centred = features - features.mean(dim=0)
    weights = torch.linalg.solve(
        centred.T @ centred + ridge * torch.eye(CHANNELS, dtype=torch.float64), centred.T @ codes
    )
    loss = (codes - centred @ weights).square().sum() + ridge * weights.square().sum()
    expected = _information(features, labels, ridge, unit)
    gram = centred @ centred.T
    dual = (codes * (gram @ torch.linalg.solve(gram + ridge * torch.eye(SAMPLES, dtype=torch.float64), codes))).sum()
    assert _discriminant(moments, ridge, unit).information == pytest.approx(expected, rel=1e-10)
    assert float(dual) == pytest.approx(expected, rel=1e-10)
    assert float(codes.square().sum() - loss) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0, 1e4])
def test_information_never_falls_when_a_feature_is_added(ridge: float) -> None:
    features, labels = features_and_labels()
    order = torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(1))
    values = [_information(features[:, order[:count]], labels, ridge) for count in range(1, CHANNELS + 1)]
    assert all(later >= earlier - 1e-12 for earlier, later in zip(values, values[1:], strict=False))


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0, 1e4])
def test_no_removal_gains_information_in_any_order_and_all_of_them_leave_none(ridge: float, unit: bool) -> None:
    features, labels = features_and_labels()
    for seed in range(5):
        elimination = _discriminant(moments_of(features, labels), ridge, unit)
        before = elimination.information
        for channel in torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(seed)).tolist():
            assert elimination.remove(channel) >= 0
        assert elimination.information == pytest.approx(0, abs=1e-9 * before)


def test_the_product_stays_within_the_bounds_too() -> None:
    features, labels = features_and_labels(channels=40)
    labels[:25] = 0
    counts = torch.bincount(labels, minlength=CLASSES).double()
    for ridge in (1e-6, 1.0, 1e4):
        moments = moments_of(features, labels)
        assert 0 <= _discriminant(moments, ridge).information <= CLASSES - 1
        bound = SAMPLES - float(counts.square().sum()) / SAMPLES
        assert 0 <= _discriminant(moments, ridge, unit=False).information <= bound


def test_information_stays_within_its_bounds() -> None:
    features, labels = features_and_labels(channels=40)
    uneven = labels.clone()
    uneven[:25] = 0
    counts = torch.bincount(uneven, minlength=CLASSES).double()
    assert 0 <= _information(features, uneven, 1e-6) <= CLASSES - 1
    bound = SAMPLES - float(counts.square().sum()) / SAMPLES
    assert 0 <= _information(features, uneven, 1e-6, unit=False) <= bound


def test_leave_one_out_drop_equals_recomputing_without_the_channel() -> None:
    features, labels = features_and_labels()
    moments = moments_of(features, labels)
    drops = _discriminant(moments, 0.5).drops()
    for channel in range(CHANNELS):
        rest = [c for c in range(CHANNELS) if c != channel]
        expected = _information(features, labels, 0.5) - _information(features[:, rest], labels, 0.5)
        assert float(drops[channel]) == pytest.approx(expected, rel=1e-10)


def test_leave_set_out_drop_equals_recomputing_without_the_set() -> None:
    features, labels = features_and_labels()
    moments = moments_of(features, labels)
    drop = _discriminant(moments, 0.5).drop_of(torch.tensor([1, 4, 5]))
    expected = _information(features, labels, 0.5) - _information(features[:, [0, 2, 3, 6]], labels, 0.5)
    assert drop == pytest.approx(expected, rel=1e-10)


def test_differential_score_equals_autograd_through_masks() -> None:
    features, labels = features_and_labels()
    moments, codes = moments_of(features, labels), label_codes(labels, CLASSES)
    mask = torch.ones(CHANNELS, dtype=torch.float64, requires_grad=True)
    masked = (features - features.mean(dim=0)) * mask
    system = masked.T @ masked + 0.3 * torch.eye(CHANNELS, dtype=torch.float64)
    targets = masked.T @ codes
    (gradient,) = torch.autograd.grad((torch.linalg.solve(system, targets) * targets).sum(), mask)
    torch.testing.assert_close(_discriminant(moments, 0.3).differential(), gradient)


def test_elimination_with_downdates_equals_greedy_from_scratch() -> None:
    features, labels = features_and_labels(channels=24, samples=120)
    moments = moments_of(features, labels)
    elimination = _discriminant(moments, 0.2)
    alive = list(range(24))
    for _ in range(23):
        by_channel = {c: _information(features[:, [a for a in alive if a != c]], labels, 0.2) for c in alive}
        expected = max(by_channel, key=by_channel.__getitem__)
        chosen = int(elimination.drops().argmin())
        assert chosen == expected
        elimination.remove(chosen)
        assert elimination.information == pytest.approx(by_channel[chosen], rel=1e-10)
        alive.remove(chosen)


def test_a_twin_becomes_precious_once_the_other_is_gone() -> None:
    features, labels = features_and_labels()
    features = torch.cat([features, features[:, :1]], dim=1)
    moments = moments_of(features, labels)
    elimination = _discriminant(moments, 1e-6)
    before = float(elimination.drops()[0])
    elimination.remove(CHANNELS)
    assert before < 1e-3 * float(elimination.drops()[0])


def test_a_constant_channel_is_worth_nothing() -> None:
    features, labels = features_and_labels()
    features[:, 2] = 5.0
    moments = moments_of(features, labels).standardised()
    assert torch.isfinite(moments.scatter).all()
    for scaled in (moments, moments_of(features, labels)):
        assert float(_discriminant(scaled, 0.1).drops()[2]) == pytest.approx(0.0, abs=1e-12)
        assert float(_discriminant(scaled, 0.1).differential()[2]) == pytest.approx(0.0, abs=1e-12)  # W_c = 0


def test_features_that_are_all_constant_give_zeros_and_no_nan() -> None:
    moments = moments_of(torch.ones(8, 3), torch.arange(8) % CLASSES)
    for scaled in (moments, moments.standardised()):
        drops = _discriminant(scaled, ridge_for(scaled.scatter, 1e-3)).drops()
        assert drops.tolist() == [0.0, 0.0, 0.0]


def test_single_precision_samples_far_from_zero_keep_their_digits() -> None:
    features, labels = features_and_labels(samples=2000)
    exact = _information(features + 200.0, labels, 1.0)
    accumulator = MomentAccumulator(CLASSES)
    for part in range(0, 2000, 100):
        accumulator.add((features[part : part + 100] + 200.0).float(), labels[part : part + 100])
    moments = accumulator.finish()
    assert _discriminant(moments, 1.0).information == pytest.approx(exact, rel=1e-5)


def test_rotating_or_scaling_features_keeps_the_information() -> None:
    features, labels = features_and_labels()
    rotation, _ = torch.linalg.qr(features_and_labels(seed=5, samples=CHANNELS)[0])
    assert _information(features @ rotation, labels, 0.4) == pytest.approx(_information(features, labels, 0.4))
    assert _information(3 * features, labels, 9 * 0.4) == pytest.approx(_information(features, labels, 0.4))


def test_shuffled_labels_carry_much_less_information() -> None:
    features, labels = features_and_labels(samples=800)
    shuffled = labels[torch.randperm(800, generator=torch.Generator().manual_seed(4))]
    assert _information(features, shuffled, 1.0) < 0.1 * _information(features, labels, 1.0)


def test_the_drop_ignores_a_channels_scale_and_the_differential_score_does_not() -> None:
    features, labels = features_and_labels()
    scaled = features * torch.tensor([10.0] + [1.0] * (CHANNELS - 1), dtype=torch.float64)
    plain, changed = moments_of(features, labels), moments_of(scaled, labels)
    drops = [_discriminant(m, 1e-9).drops()[0] for m in (plain, changed)]
    differential = [_discriminant(m, 1e-9).differential()[0] for m in (plain, changed)]
    assert float(drops[1]) == pytest.approx(float(drops[0]), rel=1e-6)
    assert float(differential[1]) == pytest.approx(float(differential[0]) / 100, rel=1e-6)


@pytest.mark.parametrize("unit", [True, False])
def test_a_missing_class_changes_nothing(unit: bool) -> None:
    """With n_k = 0 every result equals that of the problem without class k."""
    features, labels = features_and_labels(samples=80)
    features, labels = features[labels != 2], labels[labels != 2]
    fewer = MomentAccumulator(CLASSES - 1)
    fewer.add(features, torch.where(labels > 2, labels - 1, labels))
    with_gap, without = moments_of(features, labels), fewer.finish()
    assert with_gap.counts.tolist() == [20, 20, 0, 20]
    assert torch.isfinite(with_gap.between(unit)).all()
    torch.testing.assert_close(with_gap.between(unit), without.between(unit), rtol=1e-12, atol=1e-12)
    first, second = (_discriminant(moments, 0.3, unit) for moments in (with_gap, without))
    assert 0 <= first.information == pytest.approx(second.information, rel=1e-12)
    torch.testing.assert_close(first.drops(), second.drops())
    assert not unit or first.information <= CLASSES - 2


def test_removing_several_at_once_equals_removing_them_one_by_one() -> None:
    features, labels = features_and_labels(channels=12)
    one, several = (_discriminant(moments_of(features, labels), 0.3) for _ in range(2))
    for channel in (7, 2, 9):
        one.remove(channel)
    several.remove_all(torch.tensor([7, 2, 9]))
    torch.testing.assert_close(several.drops(), one.drops())
    assert several.information == pytest.approx(one.information, rel=1e-10)
