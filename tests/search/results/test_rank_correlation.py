"""Whether an early accuracy tells the end of training, computed from made-up runs."""

import dataclasses
import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pruning.base import Goal
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search.reporting.rows import rank_correlation_table
from search.reporting.statements import audit_statement, rung_statements
from search.results.pareto import objectives
from search.results.rank_correlation import (
    JUDGED_FROM,
    SCREENED,
    UNSCREENED,
    audit_rungs,
    audit_screening,
    first_rung,
    misleads,
    switched_off,
)
from search.results.result import SearchResult
from search.schedulers.asha import MultiObjectiveASHA
from search.storage.history import History
from spaces.budget import Budget
from spaces.cost import Cost

RUNGS = (1, 2, 4)


def trial(number: int, flops: int, *accuracies: float, baseline: str = "") -> TrialResult:
    rungs = tuple(zip(RUNGS, accuracies, strict=False))
    made = Trial(number, "l2", Goal(), baseline=baseline)
    return TrialResult(made, TrialState.COMPLETE, max(accuracies), Cost(flops, 10), rungs=rungs)


def run(first: Sequence[int], second: Sequence[int]) -> list[TrialResult]:
    """Twelve trials in three bands of four; at the end those of a band rank 0, 1, 2, 3, before as they are given.

    The bands differ by far more than their members do.
    """
    results = []
    for band, flops in enumerate((10, 100, 1000)):
        for place in range(4):
            base = 0.1 + 0.2 * band
            early, late = base + 0.01 * first[place], base + 0.05 + 0.01 * second[place]
            results.append(trial(4 * band + place, flops + place, early, late, base + 0.1 + 0.01 * place))
    return results


def test_correlations_are_by_band_of_cost_and_within_bands() -> None:
    """Ranks 1, 0, 3, 2 against 0, 1, 2, 3: d = 1 four times, so 1 - 6 * 4 / (4 * 15) = 0.6."""
    one, two = audit_rungs(run((1, 0, 3, 2), (0, 1, 2, 3)), RUNGS)
    assert (one.epochs, one.trials) == (1, 12)
    assert [band.flops for band in one.bands] == [(10, 13), (100, 103), (1000, 1003)]
    assert [band.correlation for band in one.bands] == pytest.approx([0.6] * 3)
    assert one.correlation == pytest.approx(0.6)
    assert two.correlation == pytest.approx(1.0)


def test_a_rung_that_only_tells_dear_from_cheap_is_blind() -> None:
    one, _ = audit_rungs(run((3, 2, 1, 0), (0, 1, 2, 3)), RUNGS)
    assert one.correlation == pytest.approx(-1.0)


def test_the_first_rung_moves_past_the_blind_ones() -> None:
    assert first_rung(audit_rungs(run((0, 1, 2, 3), (0, 1, 2, 3)), RUNGS)) == 0
    assert first_rung(audit_rungs(run((3, 2, 1, 0), (0, 1, 2, 3)), RUNGS)) == 1


def test_where_no_rung_is_trusted_the_one_that_agrees_best_judges() -> None:
    """Ranks 2, 0, 3, 1 correlate by 0 with 0, 1, 2, 3 (d = 2, 1, 1, 2); 2, 0, 1, 3 by 0.4; 1, 2, 3, 0 by -0.2."""
    nothing, some, against = (2, 0, 3, 1), (2, 0, 1, 3), (1, 2, 3, 0)
    assert first_rung(audit_rungs(run(against, nothing), RUNGS)) == 1
    assert first_rung(audit_rungs(run(nothing, against), RUNGS)) == 0
    weak = [*run(against, some)[:4], *run(against, nothing)[4:]]
    assert audit_rungs(weak, RUNGS)[1].correlation == pytest.approx(0.4 / 3)
    assert first_rung(audit_rungs(weak, RUNGS)) == 1


def test_few_trials_or_equal_ones_judge_no_rung() -> None:
    blind = run((3, 2, 1, 0), (0, 1, 2, 3))
    assert first_rung(audit_rungs(blind[:7], RUNGS)) == 0
    (band, *_), *_ = [audit.bands for audit in audit_rungs(blind[:7], RUNGS)]
    assert (band.trials, band.correlation) == (3, None)
    assert audit_rungs([], RUNGS)[0].bands == ()
    assert audit_rungs(blind, ()) == ()
    assert audit_rungs(run((0, 0, 0, 0), (0, 1, 2, 3)), RUNGS)[0].correlation is None


def test_only_trials_that_came_to_the_end_count() -> None:
    ended = run((0, 1, 2, 3), (0, 1, 2, 3))
    paused = [trial(20 + i, 50, 0.9, 0.1) for i in range(9)]
    assert audit_rungs([*ended, *paused], RUNGS) == audit_rungs(ended, RUNGS)


def test_a_blind_rung_judges_nobody_any_more_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    problem: Any = SimpleNamespace(rungs=RUNGS, budgets=(Budget("flops", 10_000),), axis="flops")
    good, blind = run((0, 1, 2, 3), (0, 1, 2, 3)), run((3, 2, 1, 0), (0, 1, 2, 3))
    candidate, paused = Trial(99, "l2", Goal()), trial(50, 5000, 0.2)  # the second is the worst of all
    scheduler = MultiObjectiveASHA(problem, lambda result: objectives(result)[0], good)
    segment = scheduler.first_segment(candidate)
    assert segment is not None
    assert segment.epochs == 1
    assert scheduler.promotion(History(problem, [*good, paused]), {}, final=False) is None
    with caplog.at_level(logging.WARNING):
        scheduler.observe(blind)
    segment = scheduler.first_segment(candidate)
    assert segment is not None
    assert segment.epochs == 2
    assert "rank correlation -1.00 over 12 trials" in caplog.text
    step = scheduler.promotion(History(problem, [*blind, paused]), {}, final=False)
    assert step is not None
    assert (step.number, step.epochs) == (50, 2)


def test_a_search_whose_trials_have_epochs_of_their_own_reports_no_rungs(finished_search: SearchResult) -> None:
    train = {**finished_search.config["train"], "epochs": 9}
    config = {**finished_search.config, "rungs": "auto", "trials": 12, "train": train}
    search = dataclasses.replace(finished_search, config=config)
    assert search.rungs == (1, 3, 9)
    searched = dataclasses.replace(search, config={**config, "search_training": "lr,epochs=2:9"})
    assert searched.rungs == ()
    assert rung_statements(searched) == []


def blind_search(search: SearchResult) -> SearchResult:
    """Return a search of trials that the first rung ranks in the wrong order."""
    config = {**search.config, "rungs": "1,2", "trials": 12}
    config["train"] = {**config["train"], "epochs": 4}
    results = tuple(run((3, 2, 1, 0), (0, 1, 2, 3)))
    return dataclasses.replace(search, config=config, results=results, budgets=(Budget("flops", 9999),))


def test_the_report_shows_the_audit_and_what_it_led_to(finished_search: SearchResult) -> None:
    blind = blind_search(finished_search)
    table = rank_correlation_table(blind)
    assert table is not None
    assert table.heads == ("epochs", "10 to 13", "100 to 103", "1k to 1k", "within all")
    assert tuple(table.rows) == (
        ("1", *["-1.00 (4)"] * 3, "-1.00 (12)"),
        ("2", *["1.00 (4)"] * 3, "1.00 (12)"),
    )
    lines = rung_statements(blind)
    assert lines[0] == "Rungs after 1, 2 of 4 epochs: 12 trials ended after 4; 48 epochs of training instead of 48."
    assert lines[-1] == (
        "Proxy audit: rank correlation with the end is -1.00 after 1, 1.00 after 2 epochs over 12 trials; "
        "trials were first judged after 2, the first to reach 0.4."
    )
    at_end = audit_rungs(run((3, 2, 1, 0), (3, 2, 1, 0)), RUNGS)
    assert audit_statement(at_end, RUNGS).endswith("so trials were first judged where it is highest, after 1.")
    assert "fewer than 8" in audit_statement(audit_rungs(run((0, 1, 2, 3), (0, 1, 2, 3))[:5], RUNGS), RUNGS)
    assert rung_statements(finished_search) == []
    assert rank_correlation_table(finished_search) is None


def test_json_keeps_the_audit(finished_search: SearchResult) -> None:
    blind = blind_search(finished_search)
    stored = blind.to_dict()["rung_audits"]
    assert stored[0]["epochs"] == 1
    assert stored[0]["correlation"] == pytest.approx(-1.0)
    assert SearchResult.from_json(blind.to_json()).rung_audits == blind.rung_audits


def screened(number: int, before: float, after: float, method: str = "l2", baseline: str = "") -> TrialResult:
    curve = (EpochReport(number, 0, 0.1, 0.1, proxy=before), EpochReport(number, 1, after, 1.0))
    note = {} if baseline else {SCREENED: 4}
    made = Trial(number, method, Goal(), baseline=baseline)
    return TrialResult(made, TrialState.COMPLETE, after, Cost(100 + number, 10), curve=curve, note=note)


def test_screening_is_judged_by_the_winners_of_pools_and_baselines_do_not_count() -> None:
    """Before training the order is the opposite of that at the end, in every band."""
    winners = [screened(number, 0.9 - number / 100, 0.5 + number / 100) for number in range(18)]
    baselines = [screened(20 + number, number / 100, 0.5 + number / 100, baseline="uniform") for number in range(6)]
    found = audit_screening([*winners, *baselines], ())
    assert found is not None
    assert (found.epochs, found.trials) == (0, 18)
    assert found.correlation == pytest.approx(-1.0)
    assert misleads(found)
    assert not misleads(dataclasses.replace(found, trials=JUDGED_FROM - 1))
    assert audit_screening(baselines, ()) is None


def test_screening_ranks_trials_among_those_of_their_method() -> None:
    """One method is better at the end and worse before training; within each method the order is kept."""
    low = [screened(2 * number, 0.8 + number / 100, 0.2 + number / 100, "l2") for number in range(6)]
    high = [screened(2 * number + 1, 0.1 + number / 100, 0.7 + number / 100, "l1") for number in range(6)]
    found = audit_screening([*low, *high], ())
    assert found is not None
    assert found.correlation == pytest.approx(1.0)


def test_trials_without_a_proxy_are_not_ranked() -> None:
    """Records of an earlier version have none, nor has a method whose first network comes after training."""
    ranked = [screened(number, number / 100, 0.5 + number / 100) for number in range(12)]
    blind = [
        dataclasses.replace(each, curve=(dataclasses.replace(each.curve[0], proxy=None), each.curve[1]))
        for each in (screened(20 + number, 0.0, 0.9 - number / 100) for number in range(6))
    ]
    found = audit_screening([*ranked, *blind], ())
    assert found is not None
    assert (found.trials, found.correlation) == (12, pytest.approx(1.0))


def test_a_search_that_has_ended_its_screening_says_so_in_a_note() -> None:
    result = screened(0, 0.1, 0.5)
    assert not switched_off([result])
    assert switched_off([result, dataclasses.replace(result, note={UNSCREENED: "misled"})])
