"""TrialProgress: the measurements of a running trial and the time that it has taken."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator

from runners.trial import EpochReport, SavedTraining, Trial, TrialResult

SAVING_SHARE = 20
SAVING_SECONDS = 120.0  # between two saved states within an epoch


class TrialProgress:
    """The learning curve of a running trial, its intermediate networks, and its time.

    Args:
        trial: the curve, intermediate networks and time of its saved state count.

    Attributes:
        trial: without its segment and its saved state, because results must not carry weights that it started from.
    """

    def __init__(self, trial: Trial) -> None:
        saved = trial.saved
        self.trial = dataclasses.replace(trial, segment=None, saved=None)
        self._began = time.perf_counter() - (saved.seconds if saved else 0.0)
        self._active_seconds, self._entered = saved.active_seconds if saved else 0.0, math.inf
        self.curve: list[EpochReport] = list(saved.curve) if saved else []
        self._saved_at, self._seconds_of_saving = time.perf_counter(), 0.0
        self.intermediate_networks: list[TrialResult] = list(saved.intermediate_networks) if saved else []

    def seconds(self) -> float:
        """Return the seconds since the trial began."""
        return time.perf_counter() - self._began

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Count the time of the block as method, training or evaluation."""
        self._entered = time.perf_counter()
        try:
            yield
        finally:
            self._active_seconds, self._entered = self.active_seconds, math.inf

    @property
    def active_seconds(self) -> float:
        """The time spent in the method, training and evaluation."""
        return self._active_seconds + max(0.0, time.perf_counter() - self._entered)

    def save(self, states: Callable[[], tuple[bytes, ...]], *, within_epoch: bool = False) -> SavedTraining | None:
        """Return what another worker needs to go on from here; None where it would cost too much time.

        Saving takes at most one in `SAVING_SHARE` of the seconds of the trial.

        Args:
            within_epoch: whether an epoch is going on, so that a state is due only when `SAVING_SECONDS` have passed.
        """
        began = time.perf_counter()
        due = SAVING_SHARE * self._seconds_of_saving
        if began - self._saved_at < (max(due, SAVING_SECONDS) if within_epoch else due):
            return None
        curve, networks = tuple(self.curve), tuple(self.intermediate_networks)
        saved = SavedTraining(states(), curve, networks, self.seconds(), self.active_seconds, within_epoch)
        self._saved_at = time.perf_counter()
        self._seconds_of_saving = self._saved_at - began
        return saved

    def report(self, epoch: int, accuracy: float, proxy: float | None = None) -> EpochReport:
        """Append a report to the curve and return it."""
        report = EpochReport(self.trial.number, epoch, accuracy, self.seconds(), proxy)
        self.curve.append(report)
        return report
