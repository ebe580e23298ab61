"""Closed-form trials: a whole search in milliseconds, for tests and for comparing samplers."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runners.base import AskTell, Evaluation, Evaluator
from runners.config import RunnerConfig
from runners.local import LocalRunner
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from spaces.cost import Cost
from spaces.space import SearchSpace, uniform_ratios
from spaces.widths import Widths

if TYPE_CHECKING:
    from runners.evaluation.evaluate import SearchContext

    pass


@dataclass(frozen=True)
class Outcome:
    """What a simulated trial gives; `seconds` are said to have passed, none do."""

    accuracy: float
    cost: Cost
    widths: Widths
    seconds: float


@dataclass(frozen=True)
class SaturatingAccuracy:
    """Accuracy that grows with every group's width and saturates: the groups differ in how soon.

    With x the share of the dense width that group i keeps, accuracy is `best * prod_i (1 - exp(-rate_i * x))`, scaled
    to `best` at full width. It grows in every width, so the best candidate within a budget lies at the budget, and
    trades width from groups of a high rate to groups of a low one: uniform widths are never best when rates differ.

    Attributes:
        rates: group name -> how soon it saturates; a group that is not named takes `rate`.
        quality: method -> factor on all rates: above 1 it loses less where the net is narrow. 1 when it is not named.
        slowness: method -> factor on the seconds; 1 when it is not named.
    """

    space: SearchSpace
    rates: dict[str, float] = field(default_factory=dict)
    rate: float = 4.0
    best: float = 0.95
    seconds_per_gflop: float = 100.0
    quality: dict[str, float] = field(default_factory=dict)
    slowness: dict[str, float] = field(default_factory=dict)

    def __call__(self, trial: Trial) -> Outcome:
        """Return the outcome of a trial; from budgets alone it takes uniform widths."""
        goal = trial.goal
        budgets = [budget.resolve(self.space.dense_cost) for budget in goal.budgets]
        widths = goal.widths if goal.widths is not None else self.space.fit(uniform_ratios(self.space), budgets)
        self.space.check(widths)
        cost = self.space.cost(widths)
        seconds = self.slowness.get(trial.method, 1.0) * self.seconds_per_gflop * cost.flops / 1e9
        return Outcome(self.accuracy(widths, trial.method), cost, widths, seconds)

    def accuracy(self, widths: Widths, method: str = "") -> float:
        """Return the accuracy of widths that a method makes, in (0, best]."""
        reached = self.best
        for group in self.space.variable:
            rate = self.rates.get(group.name, self.rate) * self.quality.get(method, 1.0)
            kept = widths.get(group.name, group.width) / group.width
            reached *= math.expm1(-rate * kept) / math.expm1(-rate)
        return reached


class SimulatedRunner:
    """Runs trials by formula, one after the other, through the same steps as a real runner.

    Args:
        evaluator: not used; every runner is built from the same arguments.
        outcome: trial -> what it gives; without it, `SaturatingAccuracy` over the workbench's space. An exception
            gives a FAILED trial.
        epochs: reports per trial after epoch 0, approaching the final accuracy from below; a leg has as many as it has
            epochs, and goes on where the one before has ended.
        noise: standard deviation of the accuracy, times the share of the epochs still to come.
    """

    def __init__(
        self,
        config: RunnerConfig | None = None,
        evaluator: Evaluator | None = None,
        *,
        outcome: Callable[[Trial], Outcome] | None = None,
        epochs: int = 1,
        noise: float = 0.0,
    ) -> None:
        self.config = config or RunnerConfig()
        self._outcome = outcome
        self._epochs, self._noise = epochs, noise

    def run(self, ask_tell: AskTell, search_context: "SearchContext") -> None:
        """Return when every trial is told."""
        outcome = self._outcome or SaturatingAccuracy(search_context.space)

        def simulate(trial: Trial, search_context: "SearchContext") -> Evaluation:
            return _simulate(trial, outcome, self._epochs, self._noise)

        LocalRunner(self.config, simulate).run(ask_tell, search_context)


def _simulate(trial: Trial, outcome: Callable[[Trial], Outcome], epochs: int, noise: float) -> Evaluation:
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
        chance = random.Random(f"{trial.seed} {epoch}").gauss(0.0, noise) * (1 - share)
        reached = min(1.0, max(0.0, final.accuracy * (0.5 + 0.5 * share) + chance))
        report = EpochReport(trial.number, epoch, reached, final.seconds * (share - before))
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
