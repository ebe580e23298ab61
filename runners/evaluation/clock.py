"""Clock: what a trial has measured on its way, and where its time went."""

import contextlib
import time
from collections.abc import Iterator

from runners.trial import EpochReport, Trial, TrialResult


class Clock:
    """The learning curve of a trial, the networks it has passed, and where its time went."""

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
        """Count the time of this block as method, training or evaluation."""
        entered = time.perf_counter()
        try:
            yield
        finally:
            self.active_seconds += time.perf_counter() - entered

    def report(self, epoch: int, reached: float) -> EpochReport:
        """Add a point to the curve and return it."""
        report = EpochReport(self.trial.number, epoch, reached, self.seconds())
        self.curve.append(report)
        return report
