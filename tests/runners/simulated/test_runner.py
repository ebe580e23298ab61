"""Closed-form trials behave like real ones, only faster."""

import math

import pytest

from pruning.base import Goal
from runners.evaluation.evaluate import SearchContext
from runners.simulated.runner import Outcome, SaturatingAccuracy, SimulatedRunner
from runners.trial import EpochReport, TrainingSegment, Trial, TrialResult
from spaces.budget import Budget
from spaces.widths import Widths


class Desk:
    def __init__(self, goals: list[Goal]) -> None:
        self.trials = [Trial(number, "l2", goal) for number, goal in enumerate(goals)]
        self.reports: list[EpochReport] = []
        self.told: list[TrialResult] = []

    def ask(self) -> Trial | None:
        return self.trials.pop(0) if self.trials else None

    def report(self, report: EpochReport) -> bool:
        self.reports.append(report)
        return True

    def tell(self, result: TrialResult) -> None:
        self.told.append(result)


def test_accuracy_is_best_at_full_width_and_falls_with_every_group(tiny_search_context: SearchContext) -> None:
    accuracy = SaturatingAccuracy(tiny_search_context.space, {"0": 2.0}).accuracy
    full = tiny_search_context.space.full
    assert accuracy(full) == pytest.approx(0.95)
    assert accuracy(full | {"0": 4}) == pytest.approx(0.95 * (1 - math.exp(-1)) / (1 - math.exp(-2)))
    assert accuracy(full | {"0": 4}) < accuracy(full | {"3": 4}) < accuracy(full)


def test_the_report_after_the_last_epoch_is_the_accuracy(tiny_search_context: SearchContext) -> None:
    desk = Desk([Goal(Widths({"0": 4, "3": 6}))])
    SimulatedRunner(epochs=3).run(desk, tiny_search_context)
    assert [report.epoch for report in desk.reports] == [0, 1, 2, 3]
    assert [report.accuracy for report in desk.reports] == sorted(report.accuracy for report in desk.reports)
    assert desk.told[0].accuracy == desk.reports[-1].accuracy
    assert desk.told[0].cost == tiny_search_context.space.cost(Widths({"0": 4, "3": 6}))


def test_budgets_alone_take_uniform_widths(tiny_search_context: SearchContext) -> None:
    desk = Desk([Goal(budgets=(Budget.parse("50%"),))])
    SimulatedRunner().run(desk, tiny_search_context)
    cost = desk.told[0].cost
    assert cost is not None
    assert cost.flops <= tiny_search_context.space.dense_cost.flops / 2


def test_a_formula_that_raises_fails_its_trial(tiny_search_context: SearchContext) -> None:
    def outcome(trial: Trial) -> Outcome:
        raise ValueError("unlucky")

    desk = Desk([Goal(), Goal()])
    SimulatedRunner(outcome=outcome).run(desk, tiny_search_context)
    assert [(result.state, result.error) for result in desk.told] == [("failed", "ValueError: unlucky")] * 2


def test_a_thousand_trials_take_less_than_two_seconds(tiny_search_context: SearchContext) -> None:
    desk = Desk([Goal(Widths({"0": 1 + n % 8, "3": 1 + n % 7})) for n in range(1000)])
    SimulatedRunner().run(desk, tiny_search_context)
    assert len(desk.told) == 1000


def test_methods_may_differ_in_quality_and_speed(tiny_search_context: SearchContext) -> None:
    outcome = SaturatingAccuracy(tiny_search_context.space, quality={"di": 2.0}, slowness={"di": 3.0})
    goal = Goal(Widths({"0": 4, "3": 4}))
    better, plain = outcome(Trial(0, "di", goal)), outcome(Trial(1, "l2", goal))
    assert better.accuracy > plain.accuracy
    assert better.seconds == pytest.approx(3 * plain.seconds)
    assert better.cost == plain.cost


def test_legs_go_on_where_the_one_before_has_ended_and_early_accuracies_may_be_noisy(
    tiny_search_context: SearchContext,
) -> None:
    goal = Goal(Widths({"0": 4, "3": 6}))
    whole, segments = Desk([goal]), Desk([])
    SimulatedRunner(epochs=3, noise=0.2).run(whole, tiny_search_context)
    segments.trials = [Trial(0, "di", goal, segment=segment) for segment in (TrainingSegment(1), TrainingSegment(2, 1))]
    SimulatedRunner(epochs=3, noise=0.2).run(segments, tiny_search_context)
    assert [(each.epoch, each.accuracy) for each in segments.reports] == [(e.epoch, e.accuracy) for e in whole.reports]
    assert sum(each.seconds for each in segments.told) == pytest.approx(whole.told[0].seconds)
    quiet = Desk([goal])
    SimulatedRunner(epochs=3).run(quiet, tiny_search_context)
    assert quiet.told[0].accuracy == whole.told[0].accuracy  # only the end is certain
    assert quiet.reports[0].accuracy != whole.reports[0].accuracy
