import pytest
from scipy.stats import binom

from runners.latency.intervals import CONFIDENCE, median_interval


@pytest.mark.parametrize("count", [6, 7, 9, 20, 31, 100])
def test_the_interval_is_the_narrowest_pair_of_order_statistics_that_covers_the_median(count: int):
    low, high = median_interval([float(number) for number in range(count, 0, -1)])  # the k-th smallest is k
    assert low + high == count + 1
    assert 1 - 2 * binom.cdf(low - 1, count, 0.5) >= CONFIDENCE
    assert 1 - 2 * binom.cdf(low, count, 0.5) < CONFIDENCE


def test_the_interval_of_few_is_all_of_them():
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval([3.0]) == (3.0, 3.0)
