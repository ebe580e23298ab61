"""The size of automatic screening pools."""

import pytest

from runners.evaluation.proxy import PROXY_IMAGES
from runners.evaluation.screening import automatic_pool_size, screen_images


def test_a_candidate_is_screened_on_as_many_images_at_most_as_its_proxy_takes() -> None:
    assert screen_images(100) == pytest.approx((160 + 128 + 100) / 3)
    assert screen_images(2_048) == screen_images(PROXY_IMAGES) == pytest.approx((160 + 128 + PROXY_IMAGES) / 3)


@pytest.mark.parametrize(
    ("trained", "pools", "calibration", "size"),
    [
        (24 * 2 * 4_000, 10, 112, 14),  # 0.1 * 192,000 / (400 / 3) = 144 candidates
        (24 * 2 * 4_000, 0.4, 112, 64),
        (12 * 2 * 1_000, 0.4, 112, 18),
        (1_000, 1, 112, 1),
        (24 * 90 * 50_000, 10, 2_048, 64),
    ],
)
def test_automatic_pools_cost_at_most_a_tenth_of_the_training(
    trained: int, pools: float, calibration: int, size: int
) -> None:
    assert automatic_pool_size(trained, pools, calibration) == size
