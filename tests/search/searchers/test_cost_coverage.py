"""Where on the budget range the next trial goes."""

import math

import pytest

from search.searchers.cost_coverage import MAX_REPEATS, CostCoverage, largest_gap
from spaces.budget import Budget

TARGETS = (Budget("flops", 50), Budget("flops", 20), Budget("flops", 7))


def test_the_target_with_the_fewest_trials_is_served_first_and_of_equals_the_largest() -> None:
    coverage = CostCoverage("flops", 100.0, 0.05, TARGETS)
    assert coverage.next_target([]) == 0.5
    assert coverage.next_target([50, 20, 50, 8, 8, 8]) == 0.07  # 8 is the limit of no target


def test_the_largest_gap_is_found_in_log_cost() -> None:
    assert largest_gap([], 0.01) == pytest.approx(0.1)
    assert largest_gap([0.1], 0.01) == pytest.approx(math.sqrt(0.1))  # of equals the dearest
    assert largest_gap([0.1, 0.3, 1.4], 0.01) == pytest.approx(math.sqrt(0.01 * 0.1))
    assert largest_gap([0.5], 1.0) == 1.0


def test_the_next_target_is_another_one_after_many_repeats() -> None:
    coverage = CostCoverage("flops", 100.0, 0.05, TARGETS)
    assert coverage.next_target([50]) == 0.2
    assert coverage.next_target([50], repeats=MAX_REPEATS) == 0.07
    assert coverage.next_target([50], repeats=2 * MAX_REPEATS) == 0.5
    assert CostCoverage("flops", 100.0, 0.05).next_target([50]) is None


def test_the_limit_at_the_fraction_of_a_target_is_the_target() -> None:
    coverage = CostCoverage("flops", 300.0, 0.01, TARGETS)
    assert [coverage.limit(fraction) for fraction in coverage.by_fraction] == list(TARGETS)
    assert coverage.limit(0.999) == Budget("flops", 299)


def test_the_mean_fraction_is_that_of_the_targets_or_of_even_log_cost() -> None:
    assert CostCoverage("flops", 100.0, 0.05, TARGETS).mean == pytest.approx((0.5 + 0.2 + 0.07) / 3)
    assert CostCoverage("flops", 100.0, 0.1).mean == pytest.approx(0.9 / math.log(10))
    assert CostCoverage("flops", 100.0, 1.0).mean == 1.0
