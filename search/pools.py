"""Pools: candidates that are compared before any training, of which one becomes the trial of their number."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from runners.trial import Trial

Handle = TypeVar("Handle")


class Pools(Generic[Handle]):
    """The candidates besides the trials that a study has given out.

    Attributes:
        planned: numbers of the trials that nothing is compared with.
        keys: of every rival, and of what lost against one, and the number that it had: it is not proposed again.
    """

    def __init__(self) -> None:
        self.planned: set[int] = set()
        self.keys: dict[str, int] = {}
        self._rivals: dict[int, list[tuple[Handle, Trial]]] = {}

    def add(self, handle: Handle, trial: Trial) -> None:
        """Take in a rival of the trial with its number."""
        self._rivals.setdefault(trial.number, []).append((handle, trial))
        self.keys[trial.key()] = trial.number

    def pop(self, number: int) -> Sequence[tuple[Handle, Trial]]:
        """Return the rivals of a trial, which are compared no more."""
        return self._rivals.pop(number, [])
