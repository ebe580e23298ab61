"""TrialProgress: the measurements of a running trial and the time that it has taken."""

import contextlib
import time
from collections.abc import Iterator

from runners.trial import EpochReport, Trial, TrialResult


class TrialProgress:
    """The learning curve of a running trial, its intermediate networks, and its time.

    Attributes:
        active_seconds: time spent in the method, training and evaluation.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self._began = time.perf_counter()
        self.active_seconds = 0.0
        self.curve: list[EpochReport] = []
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

    def report(self, epoch: int, accuracy: float, proxy: float | None = None) -> EpochReport:
        """Append a report to the curve and return it."""
        report = EpochReport(self.trial.number, epoch, accuracy, self.seconds(), proxy)
        self.curve.append(report)
        return report
