"""Whether rungs tell the end of training, computed from made-up runs."""

import dataclasses
import logging
from collections.abc import Sequence

import pytest
from search.schedulers.ladder import Ladder
from search.searchers.study_settings import StudySettings

from pruning.base import Goal
from runners.trial import Trial, TrialResult, TrialState
from search.reporting.rows import rank_correlation_table
from search.reporting.statements import audit_statement, rung_statements
from search.results.rank_correlation import audit, first_rung
from search.results.result import SearchResult
from search.storage.history import Known
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


def known(results: Sequence[TrialResult]) -> Known:
    made = Known([Budget("flops", 10_000)])
    for each in results:
        made.keep(each)
    return made


def test_correlations_are_by_band_of_cost_and_within_bands() -> None:
    """Ranks 1, 0, 3, 2 against 0, 1, 2, 3: d = 1 four times, so 1 - 6 * 4 / (4 * 15) = 0.6."""
    one, two = audit(run((1, 0, 3, 2), (0, 1, 2, 3)), RUNGS)
    assert (one.epochs, one.trials) == (1, 12)
    assert [band.flops for band in one.bands] == [(10, 13), (100, 103), (1000, 1003)]
    assert [band.correlation for band in one.bands] == pytest.approx([0.6] * 3)
    assert one.correlation == pytest.approx(0.6)
    assert two.correlation == pytest.approx(1.0)


def test_a_rung_that_only_tells_dear_from_cheap_is_blind() -> None:
    one, _ = audit(run((3, 2, 1, 0), (0, 1, 2, 3)), RUNGS)
    assert one.correlation == pytest.approx(-1.0)


def test_the_first_rung_moves_past_the_blind_ones() -> None:
    assert first_rung(audit(run((0, 1, 2, 3), (0, 1, 2, 3)), RUNGS)) == 0
    assert first_rung(audit(run((3, 2, 1, 0), (0, 1, 2, 3)), RUNGS)) == 1


def test_where_no_rung_is_trusted_the_one_that_agrees_best_judges() -> None:
    """Ranks 2, 0, 3, 1 correlate by 0 with 0, 1, 2, 3 (d = 2, 1, 1, 2); 2, 0, 1, 3 by 0.4; 1, 2, 3, 0 by -0.2."""
    nothing, some, against = (2, 0, 3, 1), (2, 0, 1, 3), (1, 2, 3, 0)
    assert first_rung(audit(run(against, nothing), RUNGS)) == 1
    assert first_rung(audit(run(nothing, against), RUNGS)) == 0
    weak = [*run(against, some)[:4], *run(against, nothing)[4:]]
    assert audit(weak, RUNGS)[1].correlation == pytest.approx(0.4 / 3)
    assert first_rung(audit(weak, RUNGS)) == 1


def test_few_trials_or_equal_ones_judge_no_rung() -> None:
    blind = run((3, 2, 1, 0), (0, 1, 2, 3))
    assert first_rung(audit(blind[:7], RUNGS)) == 0
    (band, *_), *_ = [each.bands for each in audit(blind[:7], RUNGS)]
    assert (band.trials, band.correlation) == (3, None)
    assert audit([], RUNGS)[0].bands == ()
    assert audit(blind, ()) == ()
    assert audit(run((0, 0, 0, 0), (0, 1, 2, 3)), RUNGS)[0].correlation is None


def test_only_trials_that_came_to_the_end_count() -> None:
    ended = run((0, 1, 2, 3), (0, 1, 2, 3))
    paused = [trial(20 + i, 50, 0.9, 0.1) for i in range(9)]
    assert audit([*ended, *paused], RUNGS) == audit(ended, RUNGS)


def test_a_blind_rung_judges_nobody_any_more_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    ladder = Ladder(RUNGS, [Budget("flops", 10_000)], StudySettings().cost)
    candidate = Trial(99, "l2", Goal())
    good, blind = run((0, 1, 2, 3), (0, 1, 2, 3)), run((3, 2, 1, 0), (0, 1, 2, 3))
    segment = ladder.begin(candidate, good)
    assert segment is not None
    assert segment.epochs == 1
    with caplog.at_level(logging.WARNING):
        segment = ladder.begin(candidate, blind)
    assert segment is not None
    assert segment.epochs == 2
    assert "rank correlation -1.00 over 12 trials" in caplog.text
    paused = trial(50, 5000, 0.2)  # the worst of all, and goes on: where it was judged nothing can be seen
    step = ladder.next(known([*blind, paused]), {}, completing=False)
    assert step is not None
    assert (step.number, step.epochs) == (50, 2)
    assert ladder.next(known([*good, paused]), {}, completing=False) is None


def test_a_search_whose_trials_have_epochs_of_their_own_reports_no_rungs(finished_search: SearchResult) -> None:
    train = {**finished_search.config["train"], "epochs": 9}
    config = {**finished_search.config, "rungs": "auto", "trials": 12, "train": train}
    search = dataclasses.replace(finished_search, config=config)
    assert search.rungs == (1, 3, 9)
    searched = dataclasses.replace(search, config={**config, "search_training": "lr,epochs=2:9"})
    assert searched.rungs == ()
    assert rung_statements(searched) == []


def test_the_report_shows_the_audit_and_what_it_led_to(finished_search: SearchResult) -> None:
    config = {**finished_search.config, "rungs": "1,2", "trials": 12}
    config["train"] = {**config["train"], "epochs": 4}
    blind = dataclasses.replace(
        finished_search, config=config, results=tuple(run((3, 2, 1, 0), (0, 1, 2, 3))), budgets=(Budget("flops", 9999),)
    )
    table = rank_correlation_table(blind)
    assert table is not None
    assert table.heads == ("epochs", "10 to 13", "100 to 103", "1k to 1k", "within all")
    assert tuple(table.rows) == (
        ("1", *["-1.00 (4)"] * 3, "-1.00 (12)"),
        ("2", *["1.00 (4)"] * 3, "1.00 (12)"),
    )
    lines = rung_statements(blind)
    assert lines[0] == "Rungs after 1, 2 of 4 epochs: trials ended 12 after 4; 48 epochs of training instead of 48."
    assert lines[-1] == (
        "Proxy audit: rank correlation with the end is -1.00 after 1, 1.00 after 2 epochs over 12 trials; "
        "trials were first judged after 2, the first to reach 0.4."
    )
    stored = blind.to_dict()["proxy_audit"]
    assert stored[0]["epochs"] == 1
    assert stored[0]["correlation"] == pytest.approx(-1.0)
    again = SearchResult.from_json(blind.to_json())
    assert again.proxy_audit == blind.proxy_audit
    at_end = audit(run((3, 2, 1, 0), (3, 2, 1, 0)), RUNGS)
    assert audit_statement(at_end, RUNGS).endswith("so trials were first judged where it is highest, after 1.")
    assert "fewer than 8" in audit_statement(audit(run((0, 1, 2, 3), (0, 1, 2, 3))[:5], RUNGS), RUNGS)
    assert rung_statements(finished_search) == []
    assert rank_correlation_table(finished_search) is None
