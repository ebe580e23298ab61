import dataclasses

import pytest

from search.reporting.targets import answers, target_statements, targets_table
from search.results.result import SearchResult
from spaces.budget import Budget


@pytest.fixture
def answered(finished_search: SearchResult) -> SearchResult:
    """Targets that a searched network, the baseline and no network is the best at."""
    targets = (Budget("flops", 1_536_000), Budget("flops", 768_000), Budget("flops", 100))
    return dataclasses.replace(finished_search, targets=targets)


def test_each_target_has_its_best_network_beside_the_best_baseline(answered: SearchResult) -> None:
    searched, baseline, none = answers(answered)
    assert (searched.gain, searched.verdict) == (pytest.approx(0.06), "+6.00")
    assert (baseline.gain, baseline.verdict) == (0, "baseline is best")
    assert (none.best, none.gain, none.verdict) == (None, None, "no network")


def test_rows_and_statements_say_the_same(answered: SearchResult) -> None:
    table = targets_table(answered)
    assert table is not None
    assert table.rows[0] == (
        "60.0% of flops",
        "1 di",
        "93.8%",
        "96.00%",
        "95.00%",
        "0 uniform l2",
        "90.00%",
        "89.00%",
        "+6.00",
    )
    first, second, third = target_statements(answered)
    assert first == (
        "Best at 60.0% of flops: network 1 di, validation 96.00%, test 95.00%; the best baseline, l2 with uniform "
        "widths, 90.00% and 89.00%."
    )
    assert second == (
        "Best at 30.0% of flops: network 0 uniform l2, validation 90.00%, test 89.00%; this is the best baseline, "
        "l2 with uniform widths: the search did not beat it."
    )
    assert third == "At 0.0% of flops no network was found."


def test_without_targets_there_is_nothing_to_answer(finished_search: SearchResult) -> None:
    assert (targets_table(finished_search), target_statements(finished_search)) == (None, [])
