"""Widths: the number of channels that each group keeps, which is what the search varies."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from typing_extensions import override

from spaces.errors import SpaceError


class Widths(Mapping[str, int]):
    """A frozen mapping from group name to its number of channels.

    Equality and hash depend on the content alone, not on the order of insertion: widths equal a dict of the same items.
    `to_json` is canonical, so its text can serve as a cache key.
    """

    __slots__ = ("_hash", "_items")

    def __init__(self, items: Mapping[str, int]) -> None:
        for name, width in items.items():
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                raise SpaceError(f"width of {name!r} is {width!r}; a whole number of at least 1 is needed")
        self._items = dict(items)
        self._hash = hash(frozenset(self._items.items()))

    @override
    def __getitem__(self, name: str) -> int:
        return self._items[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    @override
    def __len__(self) -> int:
        return len(self._items)

    @override
    def __hash__(self) -> int:
        return self._hash

    @override
    def __eq__(self, other: object) -> bool:
        return self._items == dict(other) if isinstance(other, Mapping) else NotImplemented

    def __or__(self, changes: Mapping[str, int]) -> "Widths":
        """Return new Widths in which the groups of `changes` have the given widths."""
        return Widths({**self._items, **changes})

    @override
    def __repr__(self) -> str:
        return f"Widths({self._items!r})"

    def __reduce__(self) -> tuple[type["Widths"], tuple[dict[str, int]]]:
        """Pickle the content only, because the hashes of strings differ between processes."""
        return Widths, (self._items,)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Tell pydantic that widths are written as a dict of whole numbers."""
        from pydantic_core import core_schema

        widths = core_schema.dict_schema(core_schema.str_schema(), core_schema.int_schema(strict=True))
        as_dict = core_schema.plain_serializer_function_ser_schema(dict)
        return core_schema.no_info_after_validator_function(cls, widths, serialization=as_dict)

    def to_json(self) -> str:
        """Serialise canonically: keys sorted, no spaces."""
        return json.dumps(self._items, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Widths":
        """Read widths that `to_json` wrote."""
        return cls(json.loads(text))

    def digest(self) -> str:
        """Return a hash of the content, 12 hexadecimal digits, which is the same in every process."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]
