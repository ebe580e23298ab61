"""Sentences about how a search went; those about its rungs and its screening are tested with their correlations."""

import dataclasses
from pathlib import Path

from runners.learning_curve import LearningCurve
from search.reporting.statements import (
    baseline_statements,
    dense_statement,
    ending,
    failure_statements,
    training_statements,
)
from search.reporting.summary import summary
from search.results.result import SearchResult


def test_a_failure_is_one_line_with_its_reason(finished_search: SearchResult) -> None:
    assert failure_statements(finished_search.results) == [
        "1 trial failed:",
        "  trial 4 (di): RuntimeError: out of memory [gpu]",
    ]


def test_a_missing_baseline_is_named_with_its_reason(finished_search: SearchResult) -> None:
    lost = finished_search.results[4]
    lost = dataclasses.replace(lost, trial=dataclasses.replace(lost.trial, baseline="own"))
    statement = "Missing baseline: di with own widths (trial 4), RuntimeError: out of memory [gpu]."
    assert baseline_statements(dataclasses.replace(finished_search, results=(lost,))) == [statement]
    assert baseline_statements(dataclasses.replace(finished_search, results=())) == []
    stopped = dataclasses.replace(finished_search, results=(lost,), interrupted=True)
    assert baseline_statements(stopped) == [
        statement,
        "Missing baseline: l2 with uniform widths, the search ended before it.",
        "Missing baseline: di with uniform widths, the search ended before it.",
    ]


def test_a_dense_network_that_was_still_improving_is_told(finished_search: SearchResult) -> None:
    improving = LearningCurve((0.4, 0.6, 0.7), train=0.7, val_images=100)
    text = (
        "The dense network was still improving as its training of 3 epochs ended: more --dense-epochs lift every "
        "network of the front."
    )
    assert dense_statement(improving) == text
    assert dense_statement(dataclasses.replace(improving, train=1.0)) == ""
    assert dense_statement(None) == ""
    told = dataclasses.replace(finished_search.dense, learning_curve=improving)
    assert text in summary(dataclasses.replace(finished_search, dense=told), Path(), "")
    assert not any("still improving" in str(part) for part in summary(finished_search, Path(), ""))


def test_an_early_end_says_what_ended_it(finished_search: SearchResult) -> None:
    assert ending(finished_search) == ""
    limited = dataclasses.replace(finished_search, time_limited=True, config={"time_limit": "30m"})
    assert ending(limited) == "The time limit of 30m ended the search after 5 finished trials."
    failed = dataclasses.replace(limited, results=finished_search.results[4:])
    assert ending(failed).endswith("after 1 finished trial, none of which gave a network inside the budgets.")
    lost = dataclasses.replace(finished_search, lost="the Ray cluster at head:1 is lost")
    assert ending(lost).startswith("Ended early: the Ray cluster at head:1 is lost. 5 finished trials, the front")
    assert ending(dataclasses.replace(limited, interrupted=True)).startswith("Stopped early: 5 finished trials")


def test_fine_tuning_is_described_where_it_was_searched(finished_search: SearchResult) -> None:
    assert training_statements(finished_search) == []
    chosen = finished_search.results[1]
    tuned = dataclasses.replace(chosen, trial=dataclasses.replace(chosen.trial, training={"epochs": 2}))
    assert training_statements(finished_search.with_results([tuned])) == [
        "Fine-tuning of the networks above:",
        "  network 1: epochs 2",
        "  network 0: as set",
        "  network 3: as set",
    ]
