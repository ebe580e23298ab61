"""Steps of a long computation: a loop counts them, and whoever asked beforehand hears of each.

So a search can say how far the statistics of a method are, without a word about displays in the code that gathers them.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Listener = Callable[[float, float], None]  # takes how many steps are done, and how many there are

_Item = TypeVar("_Item")
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def hearing_steps(listener: Listener) -> Iterator[None]:
    """Tell `listener` of the steps that are done inside the block, in this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def steps_done(done: float, total: float) -> None:
    """Say that so many of equally long steps are done; parts of steps count too."""
    if (listener := _listener.get()) is not None:
        listener(done, total)


def counted(items: Collection[_Item]) -> Iterator[_Item]:
    """Iterate over items whose treatment takes equally long, and count every one that is done."""
    for done, item in enumerate(items, start=1):
        yield item
        steps_done(done, len(items))
