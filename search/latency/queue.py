"""Networks are timed while no trial runs, and enter the front by what is measured.

Between the runner and the study stands `Timed`: once enough networks wait, it hands out no trial until the running
ones have ended, has the waiting ones measured, and goes on. With one worker that is after every trial.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from runners.base import AskTell
from runners.latency.meter import Conditions, Reading, to_plain
from runners.trial import EpochReport, Trial, TrialResult
from search.latency.predictor import Guide
from search.reporting.wording import plural
from search.results.pareto import LATENCY, affordable, objectives
from search.tuner import Study

SLOTS = 2  # in which a network whose reading is refused is measured, besides the last one
OPTIMISM = 0.9  # of a predicted latency, below which the network is taken to lie

Read = Callable[[TrialResult], Sequence[Reading]]


class Timed:
    """Hands on trials and measures what might enter the front (implements `runners.AskTell`).

    Args:
        trials: where trials come from and results go, in the end the study.
        guide: predicts latency and learns from what is measured.
        read: measures a network whose weights are on disk.
        every: networks that wait before running trials are waited for.
        phase: told what is going on.
    """

    def __init__(
        self, trials: AskTell, study: Study, read: Read, every: int, phase: Callable[[str], None] = lambda text: None
    ) -> None:
        if study.settings.guide is None:
            raise ValueError("a study without a latency guide has nothing to measure")
        self._trials, self._study, self._read, self._every, self._phase = trials, study, read, every, phase
        self._guide: Guide = study.settings.guide
        self._running = 0  # trials that workers have; those that are compared before training share a number
        self._slots: Counter[str] = Counter()
        self._told = self._next = 0  # results so far, and how many there must be before the next slot

    def ask(self) -> Trial | None:
        """Return the next trial; None while the running ones are waited for, or when there are no more."""
        rested = self._told >= self._next
        if self._running and rested and sum(1 for _ in self._due()) >= self._every:
            return None
        if not self._running and rested:
            self.measure()
        trial = self._trials.ask()
        if trial is None and not self._running:
            self.measure(last=True)
            trial = self._trials.ask()  # whoever has now come on the front may go on to the end of the training
        self._running += trial is not None
        return trial

    def report(self, report: EpochReport) -> bool:
        """Return whether the trial goes on."""
        return self._trials.report(report)

    def tell(self, result: TrialResult) -> None:
        """Tell the study, which has the result before it is measured: nothing is lost then."""
        self._running -= 1
        self._told += 1
        self._trials.tell(result)

    def measure(self, *, last: bool = False) -> None:
        """Measure what waits, the most accurate first: what it then dominates need not be measured.

        A refused reading ends the slot: the next one would meet the same busy machine. Trials go on meanwhile, as many
        as networks wait for a slot.

        Args:
            last: there is no later slot; all are tried, those whose readings were refused once more.
        """
        waiting = sorted(self._due(last), key=lambda each: (-(each.accuracy or 0.0), each.label))
        if not waiting:
            return
        self._phase(f"timing {plural(len(waiting), 'network')} while no trial runs")
        for network in waiting:
            if not self._promises(network):
                continue
            readings = tuple(self._read(network))
            self._slots[network.label] += 1
            self._study.timed(network.label, to_plain(readings))
            learn(self._guide, network, readings[0])
            if readings[0].refused and not last:
                self._next = self._told + self._every
                return

    def _due(self, last: bool = False) -> Iterator[TrialResult]:
        """Yield the networks without a good reading that might enter the front and were not tried too often."""
        for network in affordable(self._study.results, self._study.budgets):
            spent = self._slots[network.label] >= SLOTS + last
            if network.timed is None and network.path and not spent and self._promises(network):
                yield network

    def _promises(self, network: TrialResult) -> bool:
        """Whether a network might enter the front, by its prediction; one that cannot be predicted might."""
        if self._guide.far_over(network):
            return False
        if network.trial.baseline and not network.intermediate_index:  # what the others are compared with
            return True
        front = self._study.front
        cost = objectives(network)[0]
        if front.axis == LATENCY:
            cost = OPTIMISM * (self._guide.seconds_of(network) or 0.0)
        accuracy = objectives(network)[1]
        beaten = any(objectives(each, front.axis)[0] <= cost and objectives(each)[1] >= accuracy for each in front)
        return not beaten or self._answers(network)

    def _answers(self, network: TrialResult) -> bool:
        """Whether a network might be the best at a target, which one that is off the front may be."""
        best = self._study.best_at
        allowed = [target for target in self._study.targets if network.cost and target.allows(network.cost)]
        return any(
            (rival := best(target)) is None or objectives(rival)[1] < objectives(network)[1] for target in allowed
        )


def learn(guide: Guide, network: TrialResult, reading: Reading) -> None:
    """Have the model learn from a good reading of a network that is merely narrow."""
    if reading.seconds is not None and network.widths is not None and guide.seconds_of(network) is not None:
        guide.model.observe(network.widths, reading.seconds)


def take_up(study: Study, conditions: Conditions) -> None:
    """Keep of the record what was measured under the same conditions, and have the model learn from it."""
    guide = study.settings.guide

    def kept(network: TrialResult) -> TrialResult:
        readings = [Reading.from_plain(each) for each in network.latency]
        same = bool(readings) and readings[0].conditions == conditions and not readings[0].refused
        if same and guide is not None:
            learn(guide, network, readings[0])
        return network if same else replace(network, latency=())

    study.revise(kept)
