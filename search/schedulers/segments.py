"""What a leg makes of a trial: the results of both in one, and the view that the rungs have of it."""

import dataclasses
from collections.abc import Callable, Collection, Iterable

from runners.trial import TrainingSegment, TrialResult, TrialState
from search.results.pareto import measured, objectives
from search.schedulers.asha import NOT_CONTINUED, Climber

KEPT_AFTER = "kept_after_epochs"  # in the note of a trial whose longer training came out worse


def after_first(result: TrialResult, segment: TrainingSegment | None) -> TrialResult:
    """Return the result of a first leg, or of a whole training, as that of its trial."""
    result = dataclasses.replace(result, trial=dataclasses.replace(result.trial, segment=None))
    if segment is None or not measured(result):
        return result
    end = segment.end if result.state is TrialState.COMPLETE or not result.curve else result.curve[-1].epoch
    return dataclasses.replace(result, rungs=((end, objectives(result)[1]),))


def joined(earlier: TrialResult, result: TrialResult, segment: TrainingSegment) -> TrialResult:
    """Return what a trial has come to after another leg: the better network of both, and the course of the whole.

    Training changes no architecture: the latency that was measured of the network stays.

    A leg that failed leaves the trial as it was, with the reason in its note, and ends it.
    """
    later = [dataclasses.replace(each, seconds=earlier.seconds + each.seconds) for each in result.curve]
    whole = dataclasses.replace(
        earlier,
        curve=(*earlier.curve, *later),
        seconds=earlier.seconds + result.seconds,
        train_seconds=earlier.train_seconds + result.train_seconds,
    )
    if not measured(result):
        reason = f"to {segment.end} epochs: {' '.join(result.error.split()) or 'failed without a reason'}"
        return ended(whole, reason)
    before, after = objectives(earlier)[1], objectives(result)[1]
    if result.state is TrialState.STOPPED and after < before:
        # Cut off in the midst of its schedule: it can go on from where it was.
        return dataclasses.replace(whole, curve=earlier.curve)
    end = result.curve[-1].epoch if result.state is TrialState.STOPPED else segment.end
    whole = dataclasses.replace(whole, state=result.state, rungs=(*earlier.rungs, (end, after)))
    if after < before:
        best = max(earlier.rungs, key=lambda rung: rung[1])[0]
        return dataclasses.replace(whole, note={**earlier.note, KEPT_AFTER: best})
    note = {name: value for name, value in earlier.note.items() if name != KEPT_AFTER}
    return dataclasses.replace(
        whole,
        accuracy=result.accuracy,
        cost=result.cost,
        widths=result.widths,
        note={**note, **result.note},
        checkpoint=result.checkpoint,
        path=result.path,
    )


def ended(result: TrialResult, reason: str) -> TrialResult:
    """Return the result of a trial that cannot go on."""
    return dataclasses.replace(result, note={**result.note, NOT_CONTINUED: reason})


def climbers(
    results: Iterable[TrialResult],
    cost: Callable[[TrialResult], float],
    running: Collection[int],
    through: Collection[int],
) -> list[Climber]:
    """Return how trials that pause at rungs stand.

    Args:
        results: of those whose own network may go on.
        cost: of that network.
        running: numbers of the trials that a worker has.
        through: numbers of those that go to the last rung whatever the others do.
    """
    found = []
    for each in results:
        number = each.trial.number
        resting = number not in running and NOT_CONTINUED not in each.note
        found.append(Climber(number, cost(each), each.rungs, number in through, resting))
    return found
