"""Simulated trials go through the steps of real ones, and their accuracy is the closed form's."""

import dataclasses
import math
import subprocess
import sys

import pytest

from pruning.base import Goal
from runners.evaluation.context import SearchContext
from runners.simulated.runner import SaturatingAccuracy, SimulatedOutcome, SimulatedRunner
from runners.trial import EpochReport, TrainingSegment, Trial, TrialResult
from spaces.budget import Budget
from spaces.widths import Widths


class TrialList:
    """An AskTell that hands out given trials and keeps all reports and results."""

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
    trials = TrialList([Goal(Widths({"0": 4, "3": 6}))])
    SimulatedRunner(epochs=3).run(trials, tiny_search_context)
    assert [report.epoch for report in trials.reports] == [0, 1, 2, 3]
    assert [report.accuracy for report in trials.reports] == sorted(report.accuracy for report in trials.reports)
    assert trials.told[0].accuracy == trials.reports[-1].accuracy
    assert trials.told[0].cost == tiny_search_context.space.cost(Widths({"0": 4, "3": 6}))


def test_budgets_alone_take_uniform_widths(tiny_search_context: SearchContext) -> None:
    trials = TrialList([Goal(budgets=(Budget.parse("50%"),))])
    SimulatedRunner().run(trials, tiny_search_context)
    cost = trials.told[0].cost
    assert cost is not None
    assert cost.flops <= tiny_search_context.space.dense_cost.flops / 2


def test_a_formula_that_raises_fails_its_trial(tiny_search_context: SearchContext) -> None:
    def outcome(trial: Trial) -> SimulatedOutcome:
        raise ValueError("unlucky")

    trials = TrialList([Goal(), Goal()])
    SimulatedRunner(outcome=outcome).run(trials, tiny_search_context)
    assert [(result.state, result.error) for result in trials.told] == [("failed", "ValueError: unlucky")] * 2


def test_a_thousand_trials_take_less_than_two_seconds(tiny_search_context: SearchContext) -> None:
    trials = TrialList([Goal(Widths({"0": 1 + n % 8, "3": 1 + n % 7})) for n in range(1000)])
    SimulatedRunner().run(trials, tiny_search_context)
    assert len(trials.told) == 1000


def test_methods_may_differ_in_quality_and_speed(tiny_search_context: SearchContext) -> None:
    outcome = SaturatingAccuracy(tiny_search_context.space, quality={"di": 2.0}, slowness={"di": 3.0})
    goal = Goal(Widths({"0": 4, "3": 4}))
    better, plain = outcome(Trial(0, "di", goal)), outcome(Trial(1, "l2", goal))
    assert better.accuracy > plain.accuracy
    assert better.seconds == pytest.approx(3 * plain.seconds)
    assert better.cost == plain.cost


def test_a_segment_starts_where_the_one_before_has_ended_and_early_accuracies_are_noisy(
    tiny_search_context: SearchContext,
) -> None:
    goal = Goal(Widths({"0": 4, "3": 6}))
    whole, segments = TrialList([goal]), TrialList([])
    SimulatedRunner(epochs=3, noise=0.2).run(whole, tiny_search_context)
    segments.trials = [Trial(0, "di", goal, segment=segment) for segment in (TrainingSegment(1), TrainingSegment(2, 1))]
    SimulatedRunner(epochs=3, noise=0.2).run(segments, tiny_search_context)
    reports = [[(report.epoch, report.accuracy) for report in trials.reports] for trials in (segments, whole)]
    assert reports[0] == reports[1]
    assert sum(result.seconds for result in segments.told) == pytest.approx(whole.told[0].seconds)
    exact = TrialList([goal])
    SimulatedRunner(epochs=3).run(exact, tiny_search_context)
    assert exact.told[0].accuracy == whole.told[0].accuracy  # the final accuracy has no noise
    assert exact.reports[0].accuracy != whole.reports[0].accuracy


def test_the_proxies_of_a_pool_are_those_that_its_candidates_start_from(tiny_search_context: SearchContext) -> None:
    pool = tuple(Trial(0, "l2", Goal(Widths({"0": 4, "3": width})), seed=width) for width in (3, 6))
    compared, trained = TrialList([]), TrialList([])
    compared.trials, trained.trials = [dataclasses.replace(pool[0], pool=pool)], list(pool)
    for trials in (compared, trained):
        SimulatedRunner(epochs=3, noise=0.2).run(trials, tiny_search_context)
    (result,) = compared.told
    assert compared.reports == []
    assert [screened.proxy for screened in result.screened] == [whole.curve[0].proxy for whole in trained.told]
    assert [screened.cost for screened in result.screened] == [whole.cost for whole in trained.told]
    assert result.seconds == pytest.approx(sum(whole.curve[0].seconds for whole in trained.told))


def test_the_wing_is_light() -> None:
    """The command line imports it, and its help must not wait for torch or scipy."""
    check = "import sys, runners.simulated; sys.exit(bool({'torch', 'scipy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], check=True)
