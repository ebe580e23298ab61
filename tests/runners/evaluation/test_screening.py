"""The size of automatic screening pools."""

import pytest

from runners.evaluation.screening import automatic_pool_size


@pytest.mark.parametrize(
    ("epochs", "train", "val", "size"),
    [
        (2, 4_000, 1_000, 3),  # 0.25 * 2 * 4000 / (1512 / 3) = 3.97
        (1, 1_000, 488, 1),
        (90, 50_000, 5_000, 8),
    ],
)
def test_automatic_pools_cost_at_most_a_quarter_of_the_training(epochs: int, train: int, val: int, size: int) -> None:
    assert automatic_pool_size(epochs, train, val) == size
