"""Optional answers of a method that the planning of trials asks for before the method runs."""

from collections.abc import Callable, Mapping
from typing import Any

from pruning.base import Method
from spaces.errors import SlimfrontError


def wide_epochs(method: Method, epochs: int) -> float:
    """Return how many of a trial's `epochs` train the network at full width, for forecasts of time.

    A method of the same name on the pruning method gives the answer; without it the answer is 0.
    """
    answer = getattr(method, "wide_epochs", None)
    return float(answer(epochs)) if answer is not None else 0.0


def yields_intermediates(method: Method, epochs: int) -> bool:
    """Return whether a trial of `epochs` epochs may yield intermediate networks, for forecasts of disk space.

    A method of the same name on the pruning method gives the answer; without it the answer is no.
    """
    answer = getattr(method, "yields_intermediates", None)
    return bool(answer(epochs)) if answer is not None else False


def without_labels(method: Method) -> Method:
    """Return the method with the settings nearest to its own that need images alone.

    A method of the same name on the pruning method gives the answer; without it the method needs no labels.

    Raises:
        PruningError: the method cannot do without labels.
    """
    answer = getattr(method, "without_labels", None)
    return method if answer is None else answer()


def without_classes(method: Method) -> Method:
    """Return the method with the settings nearest to its own that need targets and a loss, but no classes.

    A method of the same name on the pruning method gives the answer; without it the method needs no classes.

    Raises:
        PruningError: the method, or a setting of it, cannot do without classes.
    """
    answer = getattr(method, "without_classes", None)
    return method if answer is None else answer()


def follows_sgd(kind: Callable[..., Method]) -> bool:
    """Return whether the method acts on the steps of SGD, whose rates and momentum it must know.

    An attribute of the same name gives the answer; without it the answer is no.
    """
    return bool(getattr(kind, "follows_sgd", False))


def pausable(kind: Callable[..., Method], settings: Mapping[str, Any]) -> bool:
    """Return whether the method's network can be stored and trained on later by the trial's plain training.

    An attribute of the same name gives the answer; without it the answer is yes. A method whose own loss terms or
    roundings take part in the whole training says no. For settings that the method refuses the answer is yes: the
    trial then reports the error when it runs.
    """
    try:
        return bool(getattr(kind(**settings), "pausable", True))
    except SlimfrontError:
        return True


def screenable(kind: Callable[..., Method], settings: Mapping[str, Any]) -> bool:
    """Return whether candidates of the method can be compared by their networks before any training.

    An attribute of the same name gives the answer; without it the answer is no. A method that cuts before all training
    says yes. A method that trains the wide network first, or draws new weights, has no such network to compare. For
    settings that the method refuses the answer is no: the trial then reports the error when it runs.
    """
    try:
        return bool(getattr(kind(**settings), "screenable", False))
    except SlimfrontError:
        return False
