"""Evaluate a trial: method -> snapshots -> validation accuracy, and the cost re-counted on the real narrow net.

Any exception of a trial becomes a FAILED result with its reason, so one bad candidate never ends a search.
"""

import copy
import dataclasses
import logging
import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pruning.base import METHODS, Distillation, Reshape, Snapshot, StepHook, TrainingPlan
from pruning.checkpoint import to_bytes
from runners.config import TrainConfig
from runners.data.loading import ImageData
from runners.evaluation.clock import Clock
from runners.evaluation.continuation import continue_training, is_continuation
from runners.evaluation.intermediate import IntermediateSelector, promised_cost, short_of
from runners.training.compute_format import ComputeFormat, using_threads
from runners.training.loop import TrainingRun, accuracy, fit, pick_device, reestimate_batchnorm
from runners.training.schedule import WHOLE, integrated_learning_rate, plan_training, shortened
from runners.trial import EpochReport, Trial, TrialResult, TrialState, derive_seed
from spaces.cost import Cost
from spaces.counting import count_cost
from spaces.errors import SlimfrontError
from spaces.space import SearchSpace

__all__ = ["EvaluationError", "TrialContext", "SearchContext", "count_cost", "evaluate"]

logger = logging.getLogger(__name__)


class EvaluationError(SlimfrontError):
    """A trial whose outcome cannot be trusted: no snapshot, an accuracy that is no number, a wrong or too high cost."""


@dataclass(frozen=True)
class SearchContext:
    """What every trial of a search shares. Picklable; built once and sent once to each worker.

    Attributes:
        net: the dense network, on the CPU, in eval mode; trials work on copies.
        statistics: method name -> what its `prepare` returned for the dense network.
        threads: torch threads of a trial; 0 leaves the setting of the process alone.
        fast: what `runners.training.loop.measure_compute_format` found for the dense network, so that every worker computes alike;
            None lets each process measure for itself.
    """

    net: nn.Module
    space: SearchSpace
    data: ImageData
    train: TrainConfig
    statistics: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 0
    compute_format: ComputeFormat | None = None


class TrialContext:
    """What a method may use (`pruning.base.Context`): training images and the training loop, nothing else.

    Args:
        statistics: what this method's `prepare` returned; None while it is preparing.
        teacher: the dense network on `device`; distilled from when the training options say so.
        fast: see `SearchContext`.
    """

    def __init__(
        self,
        data: ImageData,
        train: TrainConfig,
        seed: int,
        *,
        statistics: Any = None,
        teacher: nn.Module | None = None,
        compute_format: ComputeFormat | None = None,
    ) -> None:
        self.seed = seed
        self.epochs = train.epochs
        self.learning_rate = train.lr
        self.dense_learning_rate = train.dense_lr
        self.steps_per_epoch = max(1, len(data.train) // train.batch_size)
        self.device = pick_device(train.device)
        self.statistics = statistics
        # The splits a method may see, taken out one by one so that validation and test images stay out of reach.
        self._train, self._probe, self._calibration = data.train, data.probe, data.calibration
        self._config = train
        self._teacher = teacher if train.distill_weight > 0 else None
        self._compute_format = compute_format
        self._fits = 0

    def calibration_batches(self, images: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield up to `images` training images without augmentation, always the same ones, class-mixed."""
        yield from self._calibration.batches(min(256, images), device=self.device, limit=images)

    def probe_accuracy(self, net: nn.Module, images: int) -> float:
        """Return top-1 accuracy in [0, 1] on up to `images` training images."""
        return accuracy(net, self._probe, device=self.device, limit=images)

    def reestimate_batchnorm(self, net: nn.Module) -> None:
        """Replace the running statistics of every BatchNorm of `net`, in place, by those of training batches."""
        reestimate_batchnorm(net, self._calibration, device=self.device)

    def plan(self, epochs: int) -> TrainingPlan:
        """Return what `fit` will do with so many epochs."""
        return plan_training(self._train, self._config, epochs, self._config.lr)

    def fit(
        self,
        net: nn.Module,
        epochs: float,
        hook: StepHook | None = None,
        *,
        reshape: Reshape | None = None,
        span: tuple[float, float] = WHOLE,
        learning_rate: float | None = None,
        peak: float | None = None,
        distillation: Distillation | None = None,
    ) -> Iterator[int]:
        """Train `net` in place over a learning-rate schedule or part of one; yield the number of epochs after each."""
        self._fits += 1
        config = self._config if peak is None else dataclasses.replace(self._config, lr=peak)
        if learning_rate is not None:
            config = dataclasses.replace(config, lr_scheduler="constant", warmup_epochs=0.0, lr=learning_rate)
        teacher = self._teacher
        if distillation is not None:
            weight, temperature = distillation.weight, distillation.temperature
            config = dataclasses.replace(config, distill_weight=weight, distill_temperature=temperature)
            teacher = distillation.teacher
        training_run = TrainingRun(
            epochs=epochs,
            learning_rate=config.lr,
            seed=derive_seed(self.seed, f"fit {self._fits}"),
            device=self.device,
            teacher=teacher,
            hook=hook,
            reshape=reshape,
            compute_format=self._compute_format,
            span=span,
        )
        yield from fit(net, self._train, config, training_run)

    def integrated_learning_rate(self, epochs: float, span: tuple[float, float] = WHOLE) -> float:
        """Return how far a weight would move in a `fit` of `epochs` under a constant gradient of 1."""
        per_epoch = max(1, len(self._train) // self._config.batch_size)
        rate = self._config.lr
        return integrated_learning_rate(self._config, epochs=epochs, per_epoch=per_epoch, learning_rate=rate, span=span)


def evaluate(trial: Trial, search_context: SearchContext) -> Generator[EpochReport, bool | None, TrialResult]:
    """Run a trial; yield a report per snapshot that meets the goal and return the result.

    Sending False in answer to a report ends the trial there: the result is STOPPED and holds that snapshot.
    Exceptions do not leave this generator, they return a FAILED result; KeyboardInterrupt passes through.
    """
    clock = Clock(dataclasses.replace(trial, segment=None))  # its weights must not travel back with every result
    with using_threads(search_context.threads):
        try:
            search_context = _with_training(search_context, trial)
            return (yield from _measure(trial, search_context, clock))
        except Exception as error:
            logger.debug("trial %d failed", trial.number, exc_info=True)
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what an out-of-memory trial held must not starve the next one in this process
    return TrialResult(
        trial,
        TrialState.FAILED,
        curve=tuple(clock.curve),
        seconds=clock.seconds(),
        train_seconds=clock.active_seconds,
        error=reason,
        intermediate_networks=tuple(
            clock.intermediate_networks
        ),  # were measured and checked before, whatever came then
    )


def _with_training(search_context: SearchContext, trial: Trial) -> SearchContext:
    """Return the workbench with what the trial's training has of its own."""
    if not trial.training:
        return search_context
    own: dict[str, Any] = dict(trial.training)
    train = dataclasses.replace(search_context.train, **own)
    return dataclasses.replace(search_context, train=train)


def _measure(
    trial: Trial, search_context: SearchContext, clock: Clock
) -> Generator[EpochReport, bool | None, TrialResult]:
    torch.manual_seed(trial.seed)
    device = pick_device(search_context.train.device)
    dense = copy.deepcopy(search_context.net).to(device).eval()
    statistics = search_context.statistics.get(trial.method)
    train = search_context.train if trial.segment is None else shortened(search_context.train, trial.segment.epochs)
    seed = derive_seed(trial.seed, f"after {trial.segment.trained}") if is_continuation(trial.segment) else trial.seed
    context = TrialContext(
        search_context.data,
        train,
        seed,
        statistics=statistics,
        teacher=dense,
        compute_format=search_context.compute_format,
    )
    snapshots: Iterator[Snapshot]
    if is_continuation(trial.segment):
        snapshots = continue_training(trial.segment, search_context.net, search_context.space, context)
    else:
        snapshots = METHODS[trial.method](**trial.settings).run(dense, search_context.space, trial.goal, context)
    way = IntermediateSelector(trial.goal, search_context.space, train.epochs)
    last: Snapshot | None = None
    short, state = "", TrialState.COMPLETE
    while True:
        with clock.active():
            snapshot = next(snapshots, None)
        if snapshot is None:
            break
        last, short = snapshot, short_of(trial.goal, snapshot, search_context.space)
        if short:  # neither a result nor comparable at a rung: a point on the way
            if way.takes(promised_cost(snapshot, search_context.space)):
                with clock.active():
                    context.reestimate_batchnorm(snapshot.net)
                    clock.intermediate_networks.append(_intermediate_result(search_context, clock, snapshot))
            continue
        with clock.active():
            reached = _accuracy(search_context, snapshot)
        if (yield clock.report(snapshot.epoch, reached)) is False:
            state = TrialState.STOPPED
            break
    if last is None:
        raise EvaluationError(f"method {trial.method!r} ended without a snapshot; it must yield at least one")
    if short:
        raise EvaluationError(f"the narrow net {short}; method {trial.method!r} must end in a net that meets its goal")
    compare = _compared if trial.segment is not None and trial.segment.compares else _result
    result = compare(search_context, clock, last, clock.curve[-1].accuracy)
    return dataclasses.replace(
        result, state=state, curve=tuple(clock.curve), intermediate_networks=tuple(clock.intermediate_networks)
    )


def _intermediate_result(search_context: SearchContext, clock: Clock, snapshot: Snapshot) -> TrialResult:
    """Return what a trial would be had it ended at this snapshot."""
    reached = _accuracy(search_context, snapshot)
    report = EpochReport(clock.trial.number, snapshot.epoch, reached, clock.seconds())
    result = _result(search_context, clock, snapshot, reached)
    return dataclasses.replace(result, curve=(report,), intermediate_index=len(clock.intermediate_networks) + 1)


def _result(search_context: SearchContext, clock: Clock, snapshot: Snapshot, reached: float) -> TrialResult:
    cost = _checked_cost(clock.trial, snapshot, search_context.space)
    weights = to_bytes(snapshot.net, search_context.space.spec, snapshot.widths)
    return dataclasses.replace(_compared(search_context, clock, snapshot, reached), cost=cost, checkpoint=weights)


def _compared(search_context: SearchContext, clock: Clock, snapshot: Snapshot, reached: float) -> TrialResult:
    """Return what comparing candidates before training needs: most of them are never counted, nor seen again."""
    return TrialResult(
        clock.trial,
        TrialState.COMPLETE,
        accuracy=reached,
        cost=promised_cost(snapshot, search_context.space),
        widths=snapshot.widths,
        seconds=clock.seconds(),
        train_seconds=clock.active_seconds,
        note=dict(snapshot.note),
    )


def _accuracy(search_context: SearchContext, snapshot: Snapshot) -> float:
    """Measure on validation; raise for what is no number, or what a net reached whose weights are none (chance)."""
    reached = accuracy(snapshot.net, search_context.data.val, device=pick_device(search_context.train.device))
    wrong = [name for name, each in snapshot.net.state_dict().items() if not torch.isfinite(each).all()]
    if wrong or not math.isfinite(reached):
        what = f"{wrong[0]!r} of the narrow net holds values" if wrong else f"the validation accuracy {reached} is one"
        raise EvaluationError(f"after epoch {snapshot.epoch} {what} that are not finite; lower the learning rate")
    return reached


def _checked_cost(trial: Trial, snapshot: Snapshot, space: SearchSpace) -> Cost:
    """Count what the narrow net costs; a count that its promise contradicts is an error."""
    counted, promised = count_cost(snapshot.net, space.input_shape), promised_cost(snapshot, space)
    if counted != promised:
        raise EvaluationError(
            f"the narrow net has {counted.flops:,} flops and {counted.params:,} params, it promises "
            f"{promised.flops:,} and {promised.params:,}; method {trial.method!r} must yield the net it reports"
        )
    return counted
