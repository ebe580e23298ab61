"""A bounded buffer that keeps few of many items, evenly spaced in log cost, without knowing how many will come."""

import math
from collections.abc import Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class DecimatingBuffer(Generic[Item]):
    """Holds at most `capacity` items, each of which costs less than the item before it.

    A full buffer accepts the next item only at twice the mean distance in log cost between the items that it holds,
    and then drops every second one of them. `wants` answers before an item is made, so that making it can be saved.
    The item that was added last is never dropped.

    Args:
        capacity: an even number.
        cost: the first distance is measured from this cost.
    """

    def __init__(self, capacity: int, cost: float) -> None:
        self._capacity, self._gap = capacity, 0.0
        self._start = self._last = math.log(cost)
        self._items: list[Item] = []

    @property
    def items(self) -> Sequence[Item]:
        """The items so far."""
        return tuple(self._items)

    @property
    def gaps(self) -> tuple[float, float, float]:
        """What decides on the next item: two log costs and the least distance."""
        return self._start, self._last, self._gap

    def restore(self, gaps: tuple[float, float, float], items: Sequence[Item]) -> None:
        """Take over `gaps` and `items` of another buffer."""
        self._start, self._last, self._gap = gaps
        self._items = list(items)

    def wants(self, cost: float) -> bool:
        """Whether an item of this cost would be accepted."""
        return self._last - math.log(cost) >= self._needed_gap()

    def add(self, cost: float, item: Item) -> None:
        """Add an item whose cost `wants` accepts."""
        if len(self._items) == self._capacity:
            self._gap = self._needed_gap()
            self._items = self._items[1::2]
        self._items.append(item)
        self._last = math.log(cost)

    def drain(self) -> list[Item]:
        """Return the items in the order they were added, and empty the buffer.

        Later distances are measured from the last of these items.
        """
        items, self._items = self._items, []
        self._start, self._gap = self._last, 0.0
        return items

    def _needed_gap(self) -> float:
        if len(self._items) < self._capacity:
            return self._gap
        return 2 * (self._start - self._last) / self._capacity
