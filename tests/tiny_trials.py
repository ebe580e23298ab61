"""Trials of the tiny search context, and their evaluation to the end."""

import dataclasses

from pruning.base import Goal
from runners.evaluation.context import SearchContext
from runners.evaluation.evaluate import evaluate
from runners.trial import EpochReport, TrainingSegment, Trial, TrialResult, TrialState
from spaces.widths import Widths

NARROW = Widths({"0": 4, "3": 6})


def trial(method: str = "l2", goal: Goal | None = None, seed: int = 1) -> Trial:
    """Return trial 7, with the widths `NARROW` as its goal unless another one is given."""
    return Trial(7, method, goal or Goal(NARROW), seed=seed)


def finish(
    search_context: SearchContext, a_trial: Trial | None = None, answer: bool | None = None
) -> tuple[list[EpochReport], TrialResult]:
    """Evaluate a trial, sending `answer` to every report; return its reports and its result."""
    evaluation = evaluate(a_trial or trial(), search_context)
    reports = []
    try:
        reports.append(next(evaluation))
        while True:
            reports.append(evaluation.send(answer))
    except StopIteration as ended:
        return reports, ended.value


def finish_segment(search_context: SearchContext, a_trial: Trial, segment: TrainingSegment) -> TrialResult:
    """Evaluate a segment of a trial that must not fail; return its result."""
    reports, result = finish(search_context, dataclasses.replace(a_trial, segment=segment))
    assert result.state is TrialState.COMPLETE, result.error
    assert result.trial.segment is None  # a result must not carry the weights that the segment started from
    assert result.curve == tuple(reports)
    return result
