"""PendingTrials: the trials that workers have, and the candidates that are screened under their numbers."""

from collections.abc import Sequence

from runners.trial import Trial


class PendingTrials:
    """The trials that were handed out and not told yet.

    Attributes:
        trials: by number.
        keys: `Trial.candidate_key` -> number of candidates that must not be proposed again: pending, in a screening
            pool, or lost in one.
    """

    def __init__(self) -> None:
        self.trials: dict[int, Trial] = {}
        self.keys: dict[str, int] = {}
        self._pools: dict[int, dict[str, Trial]] = {}  # by number: key -> other candidate than the pending trial

    @property
    def new(self) -> list[Trial]:
        """The pending trials that run for the first time, in the order in which they began."""
        return [trial for number, trial in self.trials.items() if not self.is_promoted(number)]

    def is_promoted(self, number: int) -> bool:
        """Return whether a pending trial goes on from an earlier training segment."""
        segment = self.trials[number].segment
        return segment is not None and segment.trained > 0

    def begin(self, trial: Trial) -> None:
        """Add a trial that runs, or that goes on with another training segment."""
        self.trials[trial.number] = trial
        self.keys[trial.candidate_key()] = trial.number

    def screen(self, number: int, others: Sequence[Trial]) -> None:
        """Add candidates that are compared with a pending trial before any training."""
        self._pools[number] = {trial.candidate_key(): trial for trial in others}
        self.keys |= dict.fromkeys(self._pools[number], number)

    def select(self, winner: Trial) -> list[Trial]:
        """Keep one candidate of a screening pool as the trial of its number; return the others.

        Args:
            winner: as it is trained, whatever it is cut from.
        """
        number, first = winner.number, self.trials[winner.number]
        losers = {first.candidate_key(): first} | self._pools.pop(number)
        del losers[winner.candidate_key()]
        self.trials[number] = winner
        return list(losers.values())

    def end(self, number: int) -> Trial:
        """Remove a trial and return it."""
        trial = self.trials.pop(number)
        self.keys.pop(trial.candidate_key(), None)
        return trial
