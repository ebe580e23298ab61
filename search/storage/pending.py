"""What a study has given out: trials that are not told yet, and candidates compared with them before any training."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from runners.trial import Trial

Handle = TypeVar("Handle")


class GivenOut(Generic[Handle]):
    """Running trials and their rivals.

    Attributes:
        running: number -> the sampler's handle and the trial; no handle: it is another leg of a finished one.
        planned: numbers of the trials that nothing is compared with.
    """

    def __init__(self) -> None:
        self.running: dict[int, tuple[Handle | None, Trial]] = {}
        self.planned: set[int] = set()
        self._compared: dict[str, int] = {}
        self._rivals: dict[int, list[tuple[Handle, Trial]]] = {}

    @property
    def trials(self) -> dict[int, Trial]:
        """The running trials by number."""
        return {number: trial for number, (_, trial) in self.running.items()}

    @property
    def keys(self) -> dict[str, int]:
        """Key -> number of all that need not be proposed again: running trials, their rivals, and what lost as one."""
        return {trial.key(): number for number, (_, trial) in self.running.items()} | self._compared

    def begun(self) -> list[Trial]:
        """Return the trials that run for the first time."""
        return [trial for handle, trial in self.running.values() if handle is not None]

    def add_rival(self, handle: Handle, trial: Trial) -> None:
        """Take in a rival of the trial with its number."""
        self._rivals.setdefault(trial.number, []).append((handle, trial))
        self._compared[trial.key()] = trial.number

    def settle(self, chosen: Trial) -> Sequence[Handle]:
        """Go on with this one of a trial and its rivals; return the handles of the others."""
        number, losers = chosen.number, []
        for handle, trial in [self.running[number], *self._rivals.pop(number, [])]:
            if trial.key() == chosen.key():
                self.running[number] = (handle, trial)
            elif handle is not None:
                losers.append(handle)
                self._compared[trial.key()] = number
        return losers
