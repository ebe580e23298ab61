"""Keep few of many nets that come one by one, evenly in log cost, without knowing how many there will be."""

import math
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Thinned(Generic[Item]):
    """Never holds more than `most` items, each cheaper than the one before.

    When full it takes the next only at twice the mean distance of those it has, and then lets go of every other one:
    what is worth making can be asked before it is made, and the last item that was taken is never dropped.

    Args:
        most: an even number.
        cost: from which distances are measured, until the first item is taken.
    """

    def __init__(self, most: int, cost: float) -> None:
        self._most, self._gap = most, 0.0
        self._start = self._last = math.log(cost)
        self._kept: list[Item] = []

    def wants(self, cost: float) -> bool:
        """Whether an item of this cost would be taken."""
        return self._last - math.log(cost) >= self._needed()

    def add(self, cost: float, item: Item) -> None:
        """Take an item that is wanted."""
        if len(self._kept) == self._most:
            self._gap = self._needed()
            self._kept = self._kept[1::2]
        self._kept.append(item)
        self._last = math.log(cost)

    def hand_over(self) -> list[Item]:
        """Return the items in the order they came, and begin anew where the last of them is."""
        kept, self._kept = self._kept, []
        self._start, self._gap = self._last, 0.0
        return kept

    def _needed(self) -> float:
        if len(self._kept) < self._most:
            return self._gap
        return 2 * (self._start - self._last) / self._most
