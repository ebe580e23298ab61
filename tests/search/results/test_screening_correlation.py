"""Whether the accuracy before training is worth believing, and what a reader is told of screening."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_search import problem_of
from screened_search import BENCH, BUDGETS, SPACE, Watched, needs, screened_problem, screened_search, searched

from runners.config import RunnerConfig, TrainConfig
from runners.local import LocalRunner
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search.reporting import plan
from search.reporting.rows import rank_correlation_table
from search.reporting.statements import screening_statements
from search.results.rank_correlation import SCREENED, UNSCREENED, audit_screening
from search.results.result import DenseResult, SearchResult
from search.searchers.candidate_space import CandidateSpace


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

    url = f"sqlite:///{tmp_path / 'study.db'}"
    search = screened_search(2, screened_problem(30), url=url)
    with caplog.at_level(logging.WARNING):
        LocalRunner(RunnerConfig(), backwards).run(search, BENCH)
    assert [text for text in caplog.messages if "from now on every candidate is trained" in text] != []
    off = [result.trial.number for result in search.results if UNSCREENED in result.note]
    on = [result.trial.number for result in search.results if SCREENED in result.note]
    assert off
    assert min(off) > max(on)
    again = Watched(screened_search(2, screened_problem(40), url=url))
    LocalRunner(RunnerConfig(), backwards).run(again, BENCH)
    assert len(again.results) == 40
    assert not again.compared
    lines = screening_statements(outcome(again))
    assert f"Screening: {len(on)} of 40 trials were the best of 2 candidates before training" in lines[0]
    assert "Screening was switched off on the way, when that correlation was under 0." in lines


def outcome(trials: Watched, **config: Any) -> SearchResult:
    return SearchResult(config, trials.search.problem.budgets, DenseResult(0.9, 0.9, SPACE.dense_cost), trials.results)


def test_the_audit_shows_how_the_accuracy_before_training_ranks_within_bands() -> None:
    trials = searched(4, screened_problem(24))
    result = outcome(trials)
    audit = audit_screening(trials.results, ())
    assert audit is not None
    baselines = sum(bool(finished.trial.baseline) for finished in trials.results)
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
    result = outcome(searched(1))
    assert result.screening_audit is None
    assert screening_statements(result) == []
    assert rank_correlation_table(result) is None


def test_the_plan_says_how_many_are_compared_and_what_that_costs() -> None:
    def planned(size: int, *methods: str) -> str:
        problem = problem_of(SPACE, BUDGETS, methods, trials=20, train=TrainConfig(epochs=2))
        data = SimpleNamespace(train=range(2_000), val=range(488))
        environment: Any = SimpleNamespace(screening_pool_size=size, data=data, config=problem.config)
        return "".join(plan._screening(environment, CandidateSpace(problem)))

    text = planned(4, "l2", "csgd")
    assert "(l2) are the best of 4 candidates each before any training" in text
    assert "about 33% of the time" in text  # 4 * (512 + 488) / 3 of 2 * 2,000
    assert planned(4, "csgd") == "Screening: none, because csgd cannot be compared without training."
    assert planned(1, "l2", "csgd") == ""
