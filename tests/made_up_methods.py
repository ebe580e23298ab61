"""Pruning methods that only declare what they can do, for searches by formula."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from pruning.base import METHODS
from pruning.settings import setting


@dataclass(frozen=True)
class Plain:
    """Works at given widths and has no settings."""

    name: ClassVar[str] = "plain"
    finds_widths: ClassVar[bool] = False
    takes_widths: ClassVar[bool] = True


@dataclass(frozen=True)
class Tuned:
    """Works either way and has settings of every kind."""

    name: ClassVar[str] = "tuned"
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = True
    ridge: float = setting(0.1, low=1e-3, high=10.0, log=True)
    images: int = setting(64, low=16, high=512)
    way: str = setting("greedy", choices=("greedy", "closed"))
    fast: bool = setting(True)


@dataclass(frozen=True)
class Finding:
    """Finds widths itself: none can be given to it."""

    name: ClassVar[str] = "finding"
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = False
    levels: int = setting(4, low=1, high=256, log=True)
    exact: bool = setting(False, choices=(True, False))


def register(monkeypatch: pytest.MonkeyPatch, **kinds: type) -> None:
    """Put classes into the table of methods, under the given names."""
    for name, kind in kinds.items():
        monkeypatch.setitem(METHODS._table, name, f"{kind.__module__}:{kind.__name__}")


def register_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the methods of this module into the table, and `Plain` in place of the baseline's method."""
    register(monkeypatch, l2=Plain, plain=Plain, tuned=Tuned, finding=Finding)
