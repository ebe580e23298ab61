"""Merging of training segments: the result of a trial that pauses at rungs, from the results of its segments."""

from dataclasses import replace

from runners.trial import DENSE, DISTILL_WEIGHT, TEACHER, TrainingSegment, TrialResult, TrialState
from search.results.pareto import measured, objectives

KEPT_AFTER = "kept_after_epochs"  # in the note of a trial whose longer training came out worse
NOT_CONTINUED = "not_continued"  # in the note of a trial that a failed segment has ended
LOST = "lost"  # beside it, where workers were lost: a resumed search continues the trial


def first_result(result: TrialResult, segment: TrainingSegment | None) -> TrialResult:
    """Return the result of a first segment, or of a whole training, as the result of its trial."""
    note = {**result.note, **_taught(segment)}
    result = replace(result, trial=replace(result.trial, segment=None), note=note)
    if segment is None or not measured(result):
        return result
    end = segment.end if result.state is TrialState.COMPLETE or not result.curve else result.curve[-1].epoch
    return replace(result, rungs=((end, objectives(result)[1]),), final_epochs=end if segment.final else 0)


def merge(earlier: TrialResult, result: TrialResult, segment: TrainingSegment) -> TrialResult:
    """Return the result of a trial after another segment: the better network of both, the curve and time of the whole.

    Training changes no architecture, so the measured latency of the network stays. After a segment that failed, the
    trial keeps its earlier network, with the reason in its note, and is not continued.
    """
    later = [replace(report, seconds=earlier.seconds + report.seconds) for report in result.curve]
    whole = replace(
        earlier,
        curve=(*earlier.curve, *later),
        seconds=earlier.seconds + result.seconds,
        train_seconds=earlier.train_seconds + result.train_seconds,
    )
    if not measured(result):
        reason = f"to {segment.end} epochs: {' '.join(result.error.split()) or 'failed without a reason'}"
        ended = end_trial(whole, reason)
        return replace(ended, note={**ended.note, LOST: True}) if result.lost else ended
    before, after = objectives(earlier)[1], objectives(result)[1]
    if result.state is TrialState.STOPPED and after < before:
        # It was stopped in the middle of its schedule; it can continue from the earlier segment.
        return replace(whole, curve=earlier.curve)
    end = result.curve[-1].epoch if result.state is TrialState.STOPPED else segment.end
    rungs = earlier.rungs or ((segment.trained, before),)  # a trial that was trained at once may be trained on
    final_epochs = earlier.final_epochs + (end - segment.trained if segment.final else 0)
    whole = replace(whole, state=result.state, rungs=(*rungs, (end, after)), final_epochs=final_epochs)
    if after < before:
        best = max(rungs, key=lambda rung: rung[1])[0]
        return replace(whole, note={**earlier.note, KEPT_AFTER: best})
    note = {name: value for name, value in earlier.note.items() if name != KEPT_AFTER}
    return replace(
        whole,
        accuracy=result.accuracy,
        cost=result.cost,
        widths=result.widths,
        note={**note, **result.note, **_taught(segment)},
        checkpoint=result.checkpoint,
        path=result.path,
    )


def _taught(segment: TrainingSegment | None) -> dict[str, str | float]:
    """Return what the note of a network says of the distillation of its last segment."""
    if segment is None or segment.teaching is None:
        return {}
    return {TEACHER: segment.teaching.teacher or DENSE, DISTILL_WEIGHT: segment.teaching.weight}


def reopen(result: TrialResult) -> TrialResult:
    """Return the result of a trial that may be continued again, if it was not because its workers were lost."""
    if LOST not in result.note:
        return result
    return replace(
        result, note={name: value for name, value in result.note.items() if name not in (LOST, NOT_CONTINUED)}
    )


def end_trial(result: TrialResult, reason: str) -> TrialResult:
    """Return the result of a trial that cannot be trained on, with the reason in its note."""
    return replace(result, note={**result.note, NOT_CONTINUED: reason})
