"""Evaluate a trial: method -> snapshots -> validation accuracy, and the cost counted on the real narrow network.

Any exception in a trial becomes a FAILED result with its reason, so one bad candidate never ends a search.
"""

import copy
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch import nn

from pruning.base import METHODS, Method, Snapshot
from pruning.checkpoint import from_bytes, to_bytes
from pruning.file_size import CHECKPOINT, file_size
from runners.data.splits import HeldSplit
from runners.evaluation.context import SearchContext, States, TrialContext, TrialInputs
from runners.evaluation.continuation import Parent, continue_training, cut_parent, is_continuation, parent_of
from runners.evaluation.intermediate import IntermediateSelector, promised_cost, short_of
from runners.evaluation.progress import TrialProgress
from runners.evaluation.proxy import PROXY_IMAGES, proxy, proxy_target
from runners.evaluation.screening import SCREENED_BATCHNORM_IMAGES
from runners.training.compute_format import using_threads
from runners.training.devices import pick_device
from runners.training.schedule import segment_config
from runners.training.scoring import BATCHNORM_IMAGES, reading_format, score
from runners.trial import (
    EpochReport,
    ScreenedCandidate,
    TrainingSegment,
    Trial,
    TrialResult,
    TrialState,
    derive_seed,
)
from spaces.cost import Cost
from spaces.counting import count_cost
from spaces.errors import SlimfrontError
from spaces.files import no_room
from spaces.space import SearchSpace

logger = logging.getLogger(__name__)


class EvaluationError(SlimfrontError):
    """A trial without a valid result: no snapshot, values that are not finite, or a cost that is wrong or too high."""


def evaluate(trial: Trial, search_context: SearchContext) -> Generator[EpochReport, bool | None, TrialResult]:
    """Run a trial; yield a report for every snapshot that meets the goal, and return the result.

    A trial with a pool compares the candidates of the pool: it yields no report, and its result has no network.

    If False is sent in answer to a report, the trial ends: its result is STOPPED and holds the snapshot of that report.
    An exception in the trial does not leave this generator, which returns a FAILED result; a KeyboardInterrupt does,
    and the OSError of a full disk.
    """
    progress = TrialProgress(trial)
    with using_threads(search_context.threads_of(trial)):
        try:
            search_context = _with_training(search_context, trial)
            if trial.pool:
                return _compare(trial, search_context, progress)
            return (yield from _measure(trial, search_context, progress))
        except Exception as error:
            if isinstance(error, OSError) and no_room(error):
                raise  # of the machine, not of the candidate
            logger.debug("trial %d failed", trial.number, exc_info=True)
            reason = _reason(error)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # so that the next trial of this process has the memory of one that ran out of it
    return TrialResult(
        trial.without_weights(),
        TrialState.FAILED,
        curve=tuple(progress.curve),
        seconds=progress.seconds(),
        train_seconds=progress.active_seconds,
        error=reason,
        intermediate_networks=tuple(progress.intermediate_networks),  # measured and checked before the error
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _with_training(search_context: SearchContext, trial: Trial) -> SearchContext:
    """Return the search context with the training options that the trial, or the segment asked for, overrides."""
    overrides: dict[str, Any] = dict(trial.training)
    if trial.segment is not None and trial.segment.teaching is not None:
        overrides["distill_weight"] = trial.segment.teaching.weight
    if not overrides:
        return search_context
    train = dataclasses.replace(search_context.train, **overrides)
    return dataclasses.replace(search_context, train=train)


def _measure(
    trial: Trial, search_context: SearchContext, progress: TrialProgress
) -> Generator[EpochReport, bool | None, TrialResult]:
    """Take the snapshots of a trial, report the ones that meet its goal, and return the result of the last one."""
    torch.manual_seed(trial.seed)
    space = search_context.space
    dense = copy.deepcopy(search_context.net).to(pick_device(search_context.train.device)).eval()
    context = _trial_context(trial, search_context, dense, progress=progress)
    snapshots = _snapshots(trial, search_context, dense, context)
    earlier = [network.cost for network in progress.intermediate_networks if network.cost is not None]
    selector = IntermediateSelector(trial.goal, space, context.epochs, earlier)
    last: Snapshot | None = None
    short, state = "", TrialState.COMPLETE
    while True:
        with progress.active():
            snapshot = next(snapshots, None)
        if snapshot is None:
            break
        last, short = snapshot, short_of(trial.goal, snapshot, space)
        if context.replays:  # an earlier attempt has reported it
            continue
        if short:  # an intermediate network: neither a result nor comparable at a rung
            if selector.selects(promised_cost(snapshot, space)):
                with progress.active():
                    context.reestimate_batchnorm(snapshot.net)
                    progress.intermediate_networks.append(_intermediate_result(search_context, progress, snapshot))
            continue
        with progress.active():
            measured = _accuracy(search_context, snapshot)
            # Screening is judged by the networks that it could have chosen.
            wanted = snapshot.epoch == 0 and not (trial.baseline or trial.final)
            early = _proxy(search_context, snapshot) if wanted else math.nan
        report = progress.report(snapshot.epoch, measured, early if math.isfinite(early) else None)
        _save(search_context, progress, context.states)
        if (yield report) is False:
            state = TrialState.STOPPED
            break
    if last is None:
        raise EvaluationError(f"method {trial.method!r} ended without a snapshot; it must yield at least one")
    if short:
        raise EvaluationError(f"the narrow net {short}; method {trial.method!r} must end in a net that meets its goal")
    result = _result(search_context, progress, last, progress.curve[-1].accuracy)
    curve, intermediate_networks = tuple(progress.curve), tuple(progress.intermediate_networks)
    return dataclasses.replace(result, state=state, curve=curve, intermediate_networks=intermediate_networks)


def _save(
    search_context: SearchContext,
    progress: TrialProgress,
    states: States | None,
    *,
    within_epoch: bool = False,
) -> None:
    """Hand out the state of a trial, where another process could go on from it."""
    if search_context.save is None or states is None:
        return
    if (saved := progress.save(states, within_epoch=within_epoch)) is not None:
        search_context.save(saved)


def _compare(trial: Trial, search_context: SearchContext, progress: TrialProgress) -> TrialResult:
    """Cut the candidates of the trial's pool and measure them before any training.

    They share the network that they are cut from (a copy of the dense one, or the trial's parent), its statistics for
    their settings, and the images.
    """
    data, space, device = search_context.data, search_context.space, pick_device(search_context.train.device)
    with progress.active():
        held = dataclasses.replace(data, calibration=HeldSplit(data.calibration, PROXY_IMAGES, device))
        dense = copy.deepcopy(search_context.net).to(device).eval()
        parent = parent_of(trial, search_context.net, space, device) if trial.parent else None
        method: Method = METHODS[trial.method](**trial.settings)
        origin = (parent.net, parent.space) if parent else (dense, space)
        prepared = method.prepare(*origin, _trial_context(trial, search_context, dense))
        target = search_context.proxy_target
        shared = dataclasses.replace(
            search_context,
            data=held,
            prepared={_statistics_name(trial): prepared},
            proxy_target=proxy_target(dense, held.calibration, device=device) if target is None else target,
        )
        screened = tuple(_screened(candidate, shared, dense, parent) for candidate in trial.pool)
    return TrialResult(
        trial,
        TrialState.COMPLETE,
        seconds=progress.seconds(),
        train_seconds=progress.active_seconds,
        screened=screened,
    )


def _screened(
    candidate: Trial, search_context: SearchContext, dense: nn.Module, parent: Parent | None
) -> ScreenedCandidate:
    """Cut a candidate and measure it; one that fails is returned with the reason."""
    torch.manual_seed(candidate.seed)
    try:
        context = _trial_context(candidate, search_context, dense, SCREENED_BATCHNORM_IMAGES)
        snapshot = next(_snapshots(candidate, search_context, dense, context, parent))
        if short := short_of(candidate.goal, snapshot, search_context.space):
            raise EvaluationError(f"the cut net {short}")
        found = _proxy(search_context, snapshot)
        if not math.isfinite(found):
            raise EvaluationError("the cut net has features that are not finite, or there are too few images")
    except Exception as error:
        return ScreenedCandidate(error=_reason(error))
    return ScreenedCandidate(promised_cost(snapshot, search_context.space), found)


def _trial_context(
    trial: Trial,
    search_context: SearchContext,
    dense: nn.Module,
    batchnorm_images: int = BATCHNORM_IMAGES,
    progress: TrialProgress | None = None,
) -> TrialContext:
    """Return the context of a trial, or of the training segment that it is asked for.

    Args:
        progress: of a trial whose state is saved within epochs, too.
    """
    segment, train, seed = trial.segment, search_context.train, trial.seed
    keep: Callable[[States], None] | None = None
    if progress is not None and search_context.save is not None:
        keep = functools.partial(_save, search_context, progress, within_epoch=True)
    if segment is not None:
        train = segment_config(train, segment.epochs)
    if is_continuation(segment):
        seed = derive_seed(trial.seed, f"after {segment.trained}")
    inputs = TrialInputs(
        teacher=_teacher(segment, search_context.net, dense),
        batchnorm_images=batchnorm_images,
        rescales=train.rescale_weights == "all" or (train.rescale_weights == "final" and _completes(segment)),
        saved=() if trial.saved is None else trial.saved.states,
        keep=keep,
    )
    prepared, compute_format = search_context.prepared.get(_statistics_name(trial)), search_context.compute_format
    return TrialContext(search_context.data, train, seed, inputs, prepared=prepared, compute_format=compute_format)


def _completes(segment: TrainingSegment | None) -> bool:
    return segment is not None and segment.completes


def _teacher(segment: TrainingSegment | None, net: nn.Module, dense: nn.Module) -> nn.Module:
    """Return the teacher of distillation on the device of `dense`, a copy of the dense network `net`."""
    if segment is None or segment.teaching is None or segment.teaching.weights is None:
        return dense
    return from_bytes(segment.teaching.weights, net).to(next(dense.parameters()).device).eval()


def _statistics_name(trial: Trial) -> str:
    """Return the name in `SearchContext.prepared` of the statistics that serve a trial."""
    return f"{trial.method} on {trial.parent}" if trial.parent else trial.method


def _snapshots(
    trial: Trial,
    search_context: SearchContext,
    dense: nn.Module,
    context: TrialContext,
    parent: Parent | None = None,
) -> Iterator[Snapshot]:
    """Return the snapshots of the trial's method, on the dense network or its parent, or of a continued training.

    Args:
        parent: of the trial, where it is at hand.
    """
    if is_continuation(trial.segment):
        return continue_training(trial.segment, search_context.net, search_context.space, context)
    method: Method = METHODS[trial.method](**trial.settings)
    if trial.parent:
        parent = parent or parent_of(trial, search_context.net, search_context.space, context.device)
        return cut_parent(parent, method, trial.goal, context)
    return method.run(dense, search_context.space, trial.goal, context)


def _intermediate_result(search_context: SearchContext, progress: TrialProgress, snapshot: Snapshot) -> TrialResult:
    """Return the result that the trial would have if it ended at this snapshot."""
    measured = _accuracy(search_context, snapshot)
    report = EpochReport(progress.trial.number, snapshot.epoch, measured, progress.seconds())
    result = _result(search_context, progress, snapshot, measured)
    return dataclasses.replace(result, curve=(report,), intermediate_index=len(progress.intermediate_networks) + 1)


def _result(search_context: SearchContext, progress: TrialProgress, snapshot: Snapshot, measured: float) -> TrialResult:
    """Return the result of a snapshot of this accuracy, with its counted cost and its weights."""
    cost = _checked_cost(progress.trial, snapshot, search_context.space)
    checkpoint = to_bytes(snapshot.net, search_context.space.spec, snapshot.widths)
    return TrialResult(
        progress.trial,
        TrialState.COMPLETE,
        accuracy=measured,
        cost=dataclasses.replace(cost, size=_size(search_context, snapshot, checkpoint)),
        widths=snapshot.widths,
        seconds=progress.seconds(),
        train_seconds=progress.active_seconds,
        note=dict(snapshot.note),
        checkpoint=checkpoint,
    )


def _size(search_context: SearchContext, snapshot: Snapshot, checkpoint: bytes) -> int | None:
    """Return the bytes of the file of a network in the format of the search; None where none counts."""
    name, space = search_context.size_format, search_context.space
    if name == CHECKPOINT:
        return len(checkpoint)
    return file_size(snapshot.net, name, space, snapshot.widths, space.spec) if name else None


def _accuracy(search_context: SearchContext, snapshot: Snapshot) -> float:
    """Return the validation score; raise an EvaluationError if it, or any weight of the network, is not finite."""
    data, train, compute_format = search_context.data, search_context.train, search_context.compute_format
    measured = score(snapshot.net, data.val, train, compute_format=compute_format)
    wrong = [name for name, tensor in snapshot.net.state_dict().items() if not torch.isfinite(tensor).all()]
    if wrong or not math.isfinite(measured):
        culprit = f"{wrong[0]!r} of the narrow net holds values" if wrong else f"the validation score {measured} is one"
        raise EvaluationError(f"after epoch {snapshot.epoch} {culprit} that are not finite; lower the learning rate")
    return measured


def _proxy(search_context: SearchContext, snapshot: Snapshot) -> float:
    """Return the proxy of a network before its training; NaN where there is none."""
    images, train, target = search_context.data.calibration, search_context.train, search_context.proxy_target
    device = pick_device(train.device)
    if target is None:
        target = proxy_target(copy.deepcopy(search_context.net), images, device=device)
    read = reading_format(snapshot.net, train, device, search_context.compute_format)
    return proxy(snapshot.net, target, images, device=device, compute_format=read)


def _checked_cost(trial: Trial, snapshot: Snapshot, space: SearchSpace) -> Cost:
    """Return the counted cost of the narrow network; raise an EvaluationError if the stated cost differs from it.

    Activations count where a budget limits them: the proof of a trace has seen one narrow network, not all.
    """
    counted, promised = count_cost(snapshot.net, space.input_shape), promised_cost(snapshot, space)
    if all(budget.quantity != "activations" for budget in trial.goal.budgets):
        promised = dataclasses.replace(promised, activations=None)
    if not counted.agrees(promised):
        raise EvaluationError(
            f"the narrow net has {counted.flops:,} flops, {counted.params:,} params and {counted.activations:,} bytes "
            f"of activations, it promises {promised.flops:,}, {promised.params:,} and {promised.activations}; method "
            f"{trial.method!r} must yield the net it reports"
        )
    return counted
