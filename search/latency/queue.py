"""MeasurementQueue: networks are timed while no trial runs, and enter the front by their measured latency.

Once enough networks wait, no trial is handed out until the running ones have ended; then the waiting networks are
measured. With one worker that is after every trial. Several boards measure at once. While none answers, the search goes
on with predictions.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from runners.latency.meter import Conditions, Reading, to_plain
from runners.latency.sharing import shared_out
from runners.trial import TrialResult
from search.callbacks import SearchCallback
from search.latency.predictor import LatencyPredictor
from search.results.pareto import affordable, is_unclear, objectives
from search.storage.history import History
from search.storage.study_storage import StudyStorage

WINDOWS = 2  # in which a network whose reading is refused is measured, besides the last one
OPTIMISM = 0.9  # of a predicted latency, below which the network is taken to lie
AWAY_WAITS, AWAY_SECONDS = 6, 10.0  # how often, and after how long, a board that is away is asked in the last window

_log = logging.getLogger(__name__)

Read = Callable[[TrialResult], Sequence[Reading]]


@dataclass(eq=False)
class MeasurementQueue:
    """Measures the networks that might enter the front.

    Attributes:
        storage: gets the readings as the history does; None keeps the search in memory.
        predictor: predicts latency and learns from readings.
        read: measures a network whose weights are on disk.
        size: number of networks that wait before running trials are waited for.
        places: number of networks that are measured at once.
        pause: waits for the given seconds.
    """

    history: History
    storage: StudyStorage | None
    predictor: LatencyPredictor
    read: Read
    size: int
    callback: SearchCallback = field(default_factory=SearchCallback)
    places: int = 1
    pause: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        """Start without results."""
        self._windows: Counter[str] = Counter()  # by label: windows in which a network was measured
        self._open = True  # whether the present window measures on
        self._told = self._resume_at = 0  # results so far, and how many there must be before the next window

    def holds_back(self, running: int) -> bool:
        """Return whether enough networks wait, so that no trial may begin until the running ones have ended."""
        rested = self._told >= self._resume_at
        return bool(running) and rested and sum(1 for _ in self._due()) >= self.size

    def observe_result(self) -> None:
        """Count a result, for the number of results between two windows."""
        self._told += 1

    def measure(self, *, last: bool = False) -> None:
        """Measure the waiting networks, the most accurate first: networks that it then dominates need not be measured.

        A refused reading ends the window, because the next one would meet the same busy machine. The next window opens
        after `size` more results. A network whose unsteady interval leaves open whether it is inside the latency budget
        is measured again in a later window.

        Args:
            last: there is no later window; every waiting network is tried, one whose reading was refused once more.
        """
        if self._told < self._resume_at and not last:
            return
        waiting = sorted(self._due(last), key=lambda network: (-(network.accuracy or 0.0), network.label))
        if not waiting:
            return
        count = len(waiting)
        self.callback.on_phase(f"timing {count} network{'' if count == 1 else 's'} while no trial runs")
        self._open = True
        read = partial(self._read, last=last)
        for network, readings in shared_out(read, self._while_open(waiting), self.places):
            self._open = self._record(network, readings, last) and self._open
        if not self._open:
            self._resume_at = self._told + self.size

    def _while_open(self, waiting: Sequence[TrialResult]) -> Iterator[TrialResult]:
        """Yield the networks that might still enter the front, until a reading closes the window."""
        for network in waiting:
            if not self._open:
                return
            if self._might_enter(network):
                yield network

    def _record(self, network: TrialResult, readings: Sequence[Reading], last: bool) -> bool:
        """Keep the readings of a network; return whether the window goes on."""
        if readings[0].away:
            return False
        self._windows[network.label] += 1
        plain = to_plain(readings)
        if self.storage is not None:
            self.storage.add_latency(network.label, plain)
        self.history.add_latency(network.label, plain)
        learn(self.predictor, network, readings[0])
        return last or not readings[0].refused

    def _read(self, network: TrialResult, *, last: bool) -> tuple[Reading, ...]:
        """Measure a network; where the device does not answer say so, and in the last window wait for it a while."""
        readings = tuple(self.read(network))
        for _ in range(AWAY_WAITS if last else 0):
            if not readings[0].away:
                break
            self.callback.on_phase(f"waiting for the device: {readings[0].refused}")
            self.pause(AWAY_SECONDS)
            readings = tuple(self.read(network))
        if readings[0].away:
            then = "what is left is measured by --resume" if last else "what waits is measured when it is back"
            _log.warning("%s; the search goes on with predicted latencies, and %s", readings[0].refused, then)
        return readings

    def _due(self, last: bool = False) -> Iterator[TrialResult]:
        """Yield the networks without a clear reading that might enter the front and were not tried too often."""
        budgets = self.predictor.problem.budgets
        for network in affordable(self.history.results, budgets):
            spent = self._windows[network.label] >= WINDOWS + last
            open_ = network.timed is None or (is_unclear(network, budgets) and bool(network.timed.get("unsteady")))
            if open_ and network.path and not spent and self._might_enter(network):
                yield network

    def _might_enter(self, network: TrialResult) -> bool:
        """Return whether a network might enter the front, by its prediction; one that cannot be predicted might."""
        if self.predictor.far_over(network):
            return False
        if network.trial.baseline and not network.intermediate_index:  # the other networks are compared with it
            return True
        front = self.history.front
        cost, accuracy = objectives(network)
        if front.axis == "latency":
            cost = OPTIMISM * (self.predictor.seconds_of(network) or 0.0)
        beaten = any(
            objectives(member, front.axis)[0] <= cost and objectives(member)[1] >= accuracy for member in front
        )
        return not beaten or self._might_answer(network)

    def _might_answer(self, network: TrialResult) -> bool:
        """Return whether a network might be the best at a target, which a network off the front may be."""
        targets = self.predictor.problem.targets
        allowed = [target for target in targets if network.cost and target.allows(network.cost)]
        best = [self.history.best_at(target) for target in allowed]
        return any(other is None or objectives(other)[1] < objectives(network)[1] for other in best)


def learn(predictor: LatencyPredictor, network: TrialResult, reading: Reading) -> None:
    """Have the latency model learn from a good reading of a network of plain layers."""
    if reading.seconds is not None and network.widths is not None and predictor.seconds_of(network) is not None:
        predictor.model.observe(network.widths, reading.seconds)


def restore_readings(history: History, predictor: LatencyPredictor, conditions: Conditions) -> None:
    """Keep of an earlier process the readings under the same conditions, and have the model learn from them."""

    def keep(network: TrialResult) -> TrialResult:
        readings = [Reading.from_plain(plain) for plain in network.latency]
        same = bool(readings) and readings[0].conditions == conditions and not readings[0].refused
        if same:
            learn(predictor, network, readings[0])
        return network if same else replace(network, latency=())

    history.revise(keep)
