"""TrialProgress: the measurements of a running trial and the time that it has taken."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

from runners.trial import EpochReport, SavedTraining, Trial, TrialResult

SAVING_SHARE = 20


class TrialProgress:
    """The learning curve of a running trial, its intermediate networks, and its time.

    Args:
        trial: the curve and time of its saved state count.

    Attributes:
        trial: without its segment and its saved state, because results must not carry weights that it started from.
        active_seconds: time spent in the method, training and evaluation.
    """

    def __init__(self, trial: Trial) -> None:
        saved = trial.saved
        self.trial = dataclasses.replace(trial, segment=None, saved=None)
        self._began = time.perf_counter() - (saved.seconds if saved else 0.0)
        self.active_seconds = saved.active_seconds if saved else 0.0
        self.curve: list[EpochReport] = list(saved.curve) if saved else []
        self._saved_at, self._seconds_of_saving = time.perf_counter(), 0.0
        self.intermediate_networks: list[TrialResult] = []

    def seconds(self) -> float:
        """Return the seconds since the trial began."""
        return time.perf_counter() - self._began

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Count the time of the block as method, training or evaluation."""
        entered = time.perf_counter()
        try:
            yield
        finally:
            self.active_seconds += time.perf_counter() - entered

    @property
    def last_epoch(self) -> int:
        """The epoch of the last report; -1 before the first."""
        return self.curve[-1].epoch if self.curve else -1

    def save(self, state: Callable[[], bytes]) -> SavedTraining | None:
        """Return what another worker needs to go on from the last report; None where it would cost too much time.

        Saving takes at most one in `SAVING_SHARE` of the seconds of the trial.
        """
        began = time.perf_counter()
        if began - self._saved_at < SAVING_SHARE * self._seconds_of_saving:
            return None
        saved = SavedTraining(state(), tuple(self.curve), self.seconds(), self.active_seconds)
        self._saved_at = time.perf_counter()
        self._seconds_of_saving = self._saved_at - began
        return saved

    def report(self, epoch: int, accuracy: float, proxy: float | None = None) -> EpochReport:
        """Append a report to the curve and return it."""
        report = EpochReport(self.trial.number, epoch, accuracy, self.seconds(), proxy)
        self.curve.append(report)
        return report
