"""Simulate trials by a closed form, so that a whole search takes milliseconds: for tests and comparing samplers."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from typing_extensions import override

from runners.base import AskTell, Evaluation, Evaluator, Runner
from runners.config import RunnerConfig
from runners.local import LocalRunner
from runners.trial import EpochReport, ScreenedCandidate, Trial, TrialResult, TrialState
from spaces.cost import Cost
from spaces.space import SearchSpace, uniform_ratios
from spaces.widths import Widths

if TYPE_CHECKING:
    from runners.evaluation.context import SearchContext


@dataclass(frozen=True)
class SimulatedOutcome:
    """Result of a simulated trial.

    Attributes:
        seconds: duration that is reported; no time passes.
    """

    accuracy: float
    cost: Cost
    widths: Widths
    seconds: float


@dataclass(frozen=True)
class SaturatingAccuracy:
    """Accuracy that grows with the width of every group and saturates at a different rate for each.

    With x_i the width ratio of group i, the accuracy is `best * prod_i (1 - exp(-rate_i * x_i))`, scaled to `best` at
    full width. It grows with every width, so the best candidate within a budget uses the whole budget. Groups of a low
    rate gain more from width than groups of a high rate, so uniform widths are never best where the rates differ.

    Attributes:
        rates: group name -> rate of saturation; a group without an entry has `rate`.
        quality: method -> factor on all rates, 1 without an entry; above 1 narrow nets lose less accuracy.
        slowness: method -> factor on the seconds, 1 without an entry.
    """

    space: SearchSpace
    rates: dict[str, float] = field(default_factory=dict)
    rate: float = 4.0
    best: float = 0.95
    seconds_per_gflop: float = 100.0
    quality: dict[str, float] = field(default_factory=dict)
    slowness: dict[str, float] = field(default_factory=dict)

    def __call__(self, trial: Trial) -> SimulatedOutcome:
        """Return the outcome of a trial; a goal without widths gets uniform ones within its budgets."""
        goal = trial.goal
        budgets = [budget.resolve(self.space.dense_cost) for budget in goal.budgets]
        widths = goal.widths if goal.widths is not None else self.space.fit(uniform_ratios(self.space), budgets)
        self.space.check(widths)
        cost = self.space.cost(widths)
        seconds = self.slowness.get(trial.method, 1.0) * self.seconds_per_gflop * cost.flops / 1e9
        return SimulatedOutcome(self.accuracy(widths, trial.method), cost, widths, seconds)

    def accuracy(self, widths: Widths, method: str = "") -> float:
        """Return the accuracy of widths under a method, in (0, best]."""
        accuracy = self.best
        for group in self.space.variable:
            rate = self.rates.get(group.name, self.rate) * self.quality.get(method, 1.0)
            ratio = widths.get(group.name, group.width) / group.width
            accuracy *= math.expm1(-rate * ratio) / math.expm1(-rate)
        return accuracy


class SimulatedRunner(Runner):
    """Runs simulated trials one after the other, through the same steps as a real runner.

    Args:
        _evaluator: not used; every runner is built from the same arguments.
        outcome: trial -> its outcome; None is `SaturatingAccuracy` over the space of the search context. An exception
            gives a FAILED trial.
        epochs: number of reports of a trial after that of epoch 0; they approach the final accuracy from below. A
            training segment has a report for each of its epochs and starts where the segment before it has ended. The
            accuracy of epoch 0 stands for the proxy too.
        noise: standard deviation of a reported accuracy, times the share of the epochs that are still to come.
    """

    def __init__(
        self,
        config: RunnerConfig | None = None,
        _evaluator: Evaluator | None = None,
        *,
        outcome: Callable[[Trial], SimulatedOutcome] | None = None,
        epochs: int = 1,
        noise: float = 0.0,
    ) -> None:
        self.config = config or RunnerConfig()
        self._outcome = outcome
        self._epochs, self._noise = epochs, noise

    @override
    def run(self, ask_tell: AskTell, search_context: "SearchContext") -> None:
        outcome = self._outcome or SaturatingAccuracy(search_context.space)

        def simulate(trial: Trial, _search_context: "SearchContext") -> Evaluation:
            return _simulate(trial, outcome, self._epochs, self._noise)

        LocalRunner(self.config, simulate).run(ask_tell, search_context)


def _simulate(trial: Trial, outcome: Callable[[Trial], SimulatedOutcome], epochs: int, noise: float) -> Evaluation:
    if trial.pool:
        return _compare(trial, outcome, epochs, noise)
    try:
        final = outcome(trial)
    except Exception as error:
        return TrialResult(trial, TrialState.FAILED, error=f"{type(error).__name__}: {error}")
    curve: list[EpochReport] = []
    state = TrialState.COMPLETE
    trained, end = (trial.segment.trained, trial.segment.end) if trial.segment is not None else (0, epochs)
    before = (trained + 1) / (epochs + 1) if trained else 0.0
    for epoch in range(trained + 1 if trained else 0, end + 1):
        share = (epoch + 1) / (epochs + 1)
        accuracy = _accuracy(trial, final, epoch, share, noise)
        proxy = None if epoch else accuracy
        report = EpochReport(trial.number, epoch, accuracy, final.seconds * (share - before), proxy)
        curve.append(report)
        if (yield report) is False:
            state = TrialState.STOPPED
            break
    return TrialResult(
        trial,
        state,
        accuracy=curve[-1].accuracy,
        cost=final.cost,
        widths=final.widths,
        curve=tuple(curve),
        seconds=curve[-1].seconds,
        train_seconds=curve[-1].seconds,
    )


def _accuracy(trial: Trial, final: SimulatedOutcome, epoch: int, share: float, noise: float) -> float:
    """Return the accuracy of a trial after an epoch, at which it has had this share of its time."""
    noise_of_epoch = random.Random(f"{trial.seed} {epoch}").gauss(0.0, noise) * (1 - share)
    return min(1.0, max(0.0, final.accuracy * (0.5 + 0.5 * share) + noise_of_epoch))


def _compare(trial: Trial, outcome: Callable[[Trial], SimulatedOutcome], epochs: int, noise: float) -> TrialResult:
    """Return the result of a screening pool."""
    share = 1 / (epochs + 1)
    screened: list[ScreenedCandidate] = []
    seconds = 0.0
    for candidate in trial.pool:
        try:
            final = outcome(candidate)
        except Exception as error:
            screened.append(ScreenedCandidate(error=f"{type(error).__name__}: {error}"))
            continue
        accuracy = _accuracy(candidate, final, 0, share, noise)
        screened.append(ScreenedCandidate(final.cost, proxy=accuracy))
        seconds += final.seconds * share
    return TrialResult(trial, TrialState.COMPLETE, seconds=seconds, train_seconds=seconds, screened=tuple(screened))
