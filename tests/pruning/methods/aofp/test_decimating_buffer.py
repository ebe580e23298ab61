import math

import pytest

from pruning.methods.aofp.decimating_buffer import Thinned


def passed(costs: list[float], most: int = 4) -> tuple[list[float], int]:
    """Return what is kept of these costs, and how many were taken at some time."""
    thinned, taken = Thinned[float](most, 1000.0), 0
    for cost in costs:
        if thinned.wants(cost):
            thinned.add(cost, cost)
            taken += 1
    return thinned.hand_over(), taken


def test_few_are_all_kept() -> None:
    assert passed([900, 500, 499, 100]) == ([900, 500, 499, 100], 4)


@pytest.mark.parametrize("count", [5, 17, 100, 1000])
def test_of_many_few_are_kept_evenly_and_few_more_are_made(count: int) -> None:
    costs = [1000 * 0.05 ** ((number + 1) / count) for number in range(count)]
    kept, taken = passed(costs)
    assert 2 <= len(kept) <= 4
    gaps = [math.log(wide / narrow) for wide, narrow in zip([1000, *kept], kept, strict=False)]
    assert max(gaps) <= 2.01 * min(gaps)
    assert taken <= 4 + 2 * math.log2(count)


def test_what_was_handed_over_is_where_the_next_distance_begins() -> None:
    thinned = Thinned[str](2, 1000.0)
    thinned.add(100.0, "first")
    assert thinned.hand_over() == ["first"]
    assert thinned.hand_over() == []
    for cost, name in ((90.0, "a"), (80.0, "b")):
        assert thinned.wants(cost)
        thinned.add(cost, name)
    assert not thinned.wants(75.0)  # twice the mean distance of two since 100 would be 64
    assert thinned.wants(63.0)
    thinned.add(63.0, "c")
    assert thinned.hand_over() == ["b", "c"]
