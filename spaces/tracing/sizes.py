"""Written sizes: whole numbers in the attributes of modules that say how many channels something has.

A network may write its widths down (`self.width = 26`, then `x.split(self.width, 1)`), so that it fails when it is
narrower. While a pass is recorded, such attributes hold numbers that remember where they came from; a function that is
given one shows which channels it counts, and a narrow network gets their number.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
from torch import nn
from typing_extensions import override

from spaces.space import SizeName
from spaces.tracing.labels import Ids


class WrittenSize(int):
    """A whole number of a module's attribute, or one that is a multiple or a part of it."""

    name: SizeName
    factor: Fraction  # times the number in the attribute

    @classmethod
    def of(cls, value: int, name: SizeName, factor: Fraction = Fraction(1)) -> "WrittenSize":
        """Return the number with where it came from."""
        size = cls(value)
        size.name, size.factor = name, factor
        return size

    def counted(self, ids: Ids) -> Ids | None:
        """Return the channels that the attribute counts, if this number counts `ids`; None where they cannot be told.

        They stand for a number alone: a narrow network has as many as are kept of them.
        """
        if int(self) != len(ids) or not len(ids):
            return None
        if self.factor.numerator == 1:
            return np.tile(ids, self.factor.denominator)
        return ids[: len(ids) // self.factor.numerator] if self.factor.denominator == 1 else None

    def _times(self, factor: Fraction) -> "WrittenSize":
        return WrittenSize.of(int(int(self) * factor), self.name, self.factor * factor)

    @override
    def __mul__(self, other: Any) -> Any:
        return self._times(Fraction(other)) if type(other) is int and other > 0 else int.__mul__(self, other)

    __rmul__ = __mul__

    @override
    def __floordiv__(self, other: Any) -> Any:
        whole = isinstance(other, int) and other > 0 and int(self) % other == 0
        return self._times(Fraction(1, int(other))) if whole else int.__floordiv__(self, other)

    @override
    def __neg__(self) -> "WrittenSize":
        return self._times(Fraction(-1))


@contextmanager
def remembered_sizes(model: nn.Module) -> Iterator[None]:
    """Let the whole numbers in the attributes of all modules, in place, remember where they came from."""
    changed: list[tuple[nn.Module, str, Any]] = []
    try:
        for path, module in model.named_modules():
            for attribute, value in list(vars(module).items()):
                remembering = _remembering(value, path, attribute)
                if remembering is not None:
                    changed.append((module, attribute, value))
                    vars(module)[attribute] = remembering
        yield
    finally:
        for module, attribute, value in changed:
            vars(module)[attribute] = value


def _remembering(value: Any, path: str, attribute: str) -> Any:
    if type(value) is int:
        return WrittenSize.of(value, SizeName(path, attribute))
    if type(value) in (tuple, list) and value and all(type(item) is int for item in value):
        sizes = [WrittenSize.of(item, SizeName(path, attribute, place)) for place, item in enumerate(value)]
        return type(value)(sizes)
    return None


def written_parts(values: Sequence[Any], parts: Sequence[Ids]) -> Iterator[tuple[WrittenSize, Ids]]:
    """Yield the written sizes among some, each with the part of the same place."""
    for value, part in zip(values, parts, strict=False):
        if isinstance(value, WrittenSize):
            yield value, part


def written_bounds(index: Any, axis: int, whole: Ids) -> Iterator[tuple[WrittenSize, Ids]]:
    """Yield the written sizes among the bounds of a slice along an axis, each with the channels that it counts.

    Args:
        index: what a tensor is indexed by.
        whole: channels along the axis.
    """
    indexes = index if isinstance(index, tuple) else (index,)
    if axis >= len(indexes) or any(entry is None or entry is Ellipsis for entry in indexes[:axis]):
        return
    part = indexes[axis]
    for bound in (part.start, part.stop) if isinstance(part, slice) and part.step in (None, 1) else ():
        if isinstance(bound, WrittenSize):
            yield (-bound, whole[bound:]) if bound < 0 else (bound, whole[:bound])
