"""What a method says of itself before it runs, for whoever plans its trials."""

from collections.abc import Callable, Mapping
from typing import Any

from pruning.base import Method
from spaces.errors import SlimfrontError


def wide_epochs(method: Method, epochs: int) -> float:
    """Return how many of a trial's epochs train the net at full width, for forecasts of time.

    A method that does so says it in a method of this name, called with the trial's epochs; the others train none.
    """
    own = getattr(method, "wide_epochs", None)
    return float(own(epochs)) if own is not None else 0.0


def yields_intermediates(method: Method, epochs: int) -> bool:
    """Return whether a trial of so many epochs may yield nets on the way to its goal, for forecasts of disk.

    A method that does so says it in a method of this name, called with the trial's epochs; the others yield none.
    """
    own = getattr(method, "yields_intermediates", None)
    return bool(own(epochs)) if own is not None else False


def pausable(kind: Callable[..., Method], settings: Mapping[str, Any]) -> bool:
    """Whether the net that a method makes can be stored and trained on later, by the trial's training alone.

    A method whose own terms or roundings take part in the whole training says no in an attribute of this name. One that
    refuses its settings is asked no further: it says so when it runs.
    """
    try:
        return bool(getattr(kind(**settings), "pausable", True))
    except SlimfrontError:
        return True


def screenable(kind: Callable[..., Method], settings: Mapping[str, Any]) -> bool:
    """Whether the net that a method makes without any training says what its training starts from.

    A method whose cut comes before all training says yes in an attribute of this name; those that train the wide net,
    or put fresh weights in place of its own, have nothing to be compared by. One that refuses its settings is asked no
    further: it says so when it runs.
    """
    try:
        return bool(getattr(kind(**settings), "screenable", False))
    except SlimfrontError:
        return False
