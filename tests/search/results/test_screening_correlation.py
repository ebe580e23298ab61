"""Whether the accuracy before training is worth believing, and what a reader is told of screening."""

import logging
from typing import Any

import pytest
from screened_search import BENCH, SPACE, Watched, needs, searched, study_of

from runners.config import RunnerConfig
from runners.local import LocalRunner
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search.reporting.rows import rank_correlation_table
from search.reporting.summary import screening_statements
from search.results.rank_correlation import SCREENED, UNSCREENED, audit_screening
from search.results.result import DenseResult, SearchResult
from search.tuner import Study


def test_a_useless_proxy_is_switched_off_and_stays_off_when_resumed(
    caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    def backwards(trial: Trial, search_context: Any) -> Any:
        final = needs()(trial)
        curve = [EpochReport(trial.number, 0, 1 - final.accuracy, 0.1)]
        yield curve[0]
        if trial.segment is None:
            curve.append(EpochReport(trial.number, 1, final.accuracy, 1.0))
            yield curve[1]
        return TrialResult(
            trial, TrialState.COMPLETE, curve[-1].accuracy, final.cost, final.widths, tuple(curve), 1.0, 1.0
        )

    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = study_of(30, storage=storage)
    trials = Watched(study, 2)
    with caplog.at_level(logging.WARNING):
        LocalRunner(RunnerConfig(), backwards).run(trials, BENCH)
    assert [text for text in caplog.messages if "from now on every candidate is trained" in text] != []
    off = [each.trial.number for each in study.results if UNSCREENED in each.note]
    on = [each.trial.number for each in study.results if SCREENED in each.note]
    assert off
    assert min(off) > max(on)
    again = Watched(study_of(40, storage=storage), 2)
    LocalRunner(RunnerConfig(), backwards).run(again, BENCH)
    assert len(again.study.results) == 40
    assert not again.compared
    lines = screening_statements(outcome(again.study))
    assert f"Screening: {len(on)} of 40 trials were the best of 2 candidates before training" in lines[0]
    assert "Screening was switched off on the way, when that correlation was under 0." in lines


def outcome(study: Study, **config: Any) -> SearchResult:
    return SearchResult(config, study.budgets, DenseResult(0.9, 0.9, SPACE.dense_cost), study.results)


def test_the_audit_shows_how_the_accuracy_before_training_ranks_within_bands() -> None:
    trials = searched(4, study_of(24))
    result = outcome(trials.study)
    audit = audit_screening(trials.study.results, ())
    assert audit is not None
    baselines = sum(bool(each.trial.baseline) for each in trials.study.results)
    assert audit.trials == 24 - baselines
    assert audit.correlation == pytest.approx(1.0)  # without noise the formula keeps the order
    table = rank_correlation_table(result)
    assert table is not None
    assert table.rows[0][0] == "0 (before training)"
    assert SearchResult.from_json(result.to_json()).screening_audit == audit
    assert screening_statements(result)[0].endswith(
        f"Rank correlation with the end of training: 1.00 over {24 - baselines} trials."
    )


def test_without_screening_nothing_is_said_of_it() -> None:
    result = outcome(searched(1).study)
    assert result.screening_audit is None
    assert screening_statements(result) == []
    assert rank_correlation_table(result) is None
