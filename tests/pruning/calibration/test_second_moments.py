"""Second moments, compared with those of all samples at once."""

import pytest
import torch
from made_up_moments import CLASSES, SAMPLES, features_and_labels, moments_of

from pruning.base import PruningError
from pruning.calibration.second_moments import MomentAccumulator, ridge_for


def test_batches_order_and_shift_do_not_matter() -> None:
    features, labels = features_and_labels()
    whole = moments_of(features, labels)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(3))
    accumulator = MomentAccumulator(CLASSES)
    for part in order.split(17):
        accumulator.add(features[part] + 100.0, labels[part])
    parts = accumulator.finish()
    torch.testing.assert_close(parts.scatter, whole.scatter)
    torch.testing.assert_close(parts.cross, whole.cross)
    torch.testing.assert_close(parts.mean, whole.mean + 100.0)


def test_what_labels_tell_needs_two_classes() -> None:
    accumulator = MomentAccumulator(CLASSES)
    accumulator.add(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(PruningError, match="fewer than two classes"):
        accumulator.finish().between()


def test_scaling_to_unit_length_zeroes_constant_features() -> None:
    features, labels = features_and_labels()
    features[:, 2] = 5.0
    diagonal = moments_of(features, labels).standardised().scatter.diagonal()
    torch.testing.assert_close(diagonal, torch.tensor([1.0, 1, 0, 1, 1, 1, 1]).double())


def test_power_is_the_uncentred_mean_square() -> None:
    features, labels = features_and_labels()
    torch.testing.assert_close(moments_of(features, labels).power(), features.square().mean(dim=0))


def test_the_ridge_is_relative_to_the_mean_variance_and_one_where_nothing_varies() -> None:
    assert ridge_for(torch.diag(torch.tensor([1.0, 3.0])), 0.5) == 1.0
    assert ridge_for(torch.diag(torch.tensor([2.0, 6.0])), 0.5) == 2.0
    assert ridge_for(torch.zeros(3, 3), 0.5) == 1.0
