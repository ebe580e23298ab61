import math

import pytest

from pruning.methods.aofp.decimating_buffer import DecimatingBuffer


def buffered(costs: list[float], capacity: int = 4) -> tuple[list[float], int]:
    """Return the costs in the buffer at the end, and the number of costs that it accepted."""
    buffer, accepted = DecimatingBuffer[float](capacity, 1000.0), 0
    for cost in costs:
        if buffer.wants(cost):
            buffer.add(cost, cost)
            accepted += 1
    return buffer.drain(), accepted


def test_few_items_are_all_kept() -> None:
    assert buffered([900, 500, 499, 100]) == ([900, 500, 499, 100], 4)


@pytest.mark.parametrize("count", [5, 17, 100, 1000])
def test_of_many_items_few_are_kept_evenly_and_few_more_are_accepted(count: int) -> None:
    costs = [1000 * 0.05 ** ((number + 1) / count) for number in range(count)]
    kept, accepted = buffered(costs)
    assert 2 <= len(kept) <= 4
    gaps = [math.log(wide / narrow) for wide, narrow in zip([1000, *kept], kept, strict=False)]
    assert max(gaps) <= 2.01 * min(gaps)
    assert accepted <= 4 + 2 * math.log2(count)


def test_after_a_drain_distances_are_measured_from_the_last_item() -> None:
    buffer = DecimatingBuffer[str](2, 1000.0)
    buffer.add(100.0, "first")
    assert buffer.drain() == ["first"]
    assert buffer.drain() == []
    for cost, name in ((90.0, "a"), (80.0, "b")):
        assert buffer.wants(cost)
        buffer.add(cost, name)
    assert not buffer.wants(75.0)  # twice the mean distance of two since 100 would be 64
    assert buffer.wants(63.0)
    buffer.add(63.0, "c")
    assert buffer.drain() == ["b", "c"]
