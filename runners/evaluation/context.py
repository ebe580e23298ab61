"""SearchContext and TrialContext: what the trials of a search share, and what a method may use in one of them."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from pruning.base import NO_ACTION, TRIAL_RATES, Action, Context, Distillation, Rates, TrainingPlan
from pruning.file_size import CHECKPOINT
from pruning.inference import choose_forms, for_inference
from runners.config import TrainConfig
from runners.data.loading import ImageData
from runners.latency.meter import locked
from runners.latency.timing import fastest, latency_ratio
from runners.training.compute_format import ComputeFormat
from runners.training.devices import pick_device
from runners.training.loop import Training
from runners.training.rescaling import rescale
from runners.training.run import TrainingRun
from runners.training.schedule import WHOLE, integrated_learning_rate, plan_training
from runners.training.scoring import BATCHNORM_IMAGES, reading_format, reestimate_batchnorm, score
from runners.training.task import task_of
from runners.trial import SavedTraining, Trial, derive_seed
from spaces.space import SearchSpace

States = Callable[[], tuple[bytes, ...]]  # makes the states of the trainings of a trial so far


@dataclass(frozen=True)
class SearchContext:
    """What all trials of a search share; pickled, and sent once to each worker.

    Attributes:
        net: the dense network, on the CPU in evaluation mode; trials work on copies.
        prepared: method name -> what its `prepare` returned for the dense network. For a screening pool that is cut
            from a parent the name is that of `_statistics_name`.
        threads: torch threads of a trial; 0 does not change the setting of the process.
        threads_alone: torch threads of a training that no other trial runs beside; 0 for as many as `threads`.
        compute_format: the fastest for the dense network by `measure_compute_format`, so that all workers compute
            alike; None lets each process measure.
        proxy_target: of the dense network on the calibration images; None lets each trial compute it.
        files: paths of the images that every worker reads; none where they are in memory.
        trial_timeout: seconds that a trial may go without a report or a saved state where its worker can be ended.
        node_timeout: seconds for which a node that can take a trial is waited for, where trials run on a cluster.
        size_format: in which the size of a network's file counts; empty counts none.
        save: takes the state of a trial, from which another process can go on, after an epoch and every few minutes
            within one; None saves nothing.
    """

    net: nn.Module
    space: SearchSpace
    data: ImageData
    train: TrainConfig
    prepared: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 0
    threads_alone: int = 0
    compute_format: ComputeFormat | None = None
    proxy_target: Tensor | None = None
    files: tuple[str, ...] = ()
    trial_timeout: float = math.inf
    node_timeout: float = math.inf
    size_format: str = CHECKPOINT
    save: Callable[[SavedTraining], None] | None = None

    def threads_of(self, trial: Trial) -> int:
        """Return the torch threads of a trial: more for the end of the final training at a target.

        The next target begins when it has ended, so that the other workers have nothing to do meanwhile.
        """
        segment = trial.segment
        alone = segment is not None and segment.final and segment.completes
        return self.threads_alone if alone and self.threads_alone else self.threads


@dataclass(frozen=True)
class TrialInputs:
    """What one trial has beyond its seed and the options of training.

    Attributes:
        teacher: network on the device of the trial, the teacher of distillation where the options weigh it above 0.
        batchnorm_images: number of images on which BatchNorm statistics are estimated again.
        rescales: whether trained weights get the norm of fresh ones before a training on which the method does not act.
        saved: states of the trainings of an earlier attempt, the last of which goes on.
        keep: called after every step of a training that another process could go on from, with the function that
            returns the states of the trainings so far.
    """

    teacher: nn.Module | None = None
    batchnorm_images: int = BATCHNORM_IMAGES
    rescales: bool = False
    saved: tuple[bytes, ...] = ()
    keep: Callable[[States], None] | None = None


class TrialContext(Context):
    """What a method may use (`pruning.base.Context`): training images and the training loop, nothing else.

    Args:
        inputs: of the trial; None for one without any.
        prepared: what `prepare` of this method returned; None while it prepares, and where a parent is cut.
        compute_format: see `SearchContext`.

    Attributes:
        replays: whether the method has not come back yet to where the states of the earlier attempt were saved.
    """

    def __init__(
        self,
        data: ImageData,
        train: TrainConfig,
        seed: int,
        inputs: TrialInputs | None = None,
        *,
        prepared: Any = None,
        compute_format: ComputeFormat | None = None,
    ) -> None:
        train = train.scaled_to_batch()
        self.seed = seed
        self.epochs = train.epochs
        self.learning_rate = train.lr
        self.dense_learning_rate = train.dense_lr
        self.steps_per_epoch = max(1, len(data.train) // train.batch_size)
        self.device = pick_device(train.device)
        self.prepared = prepared
        # Only the splits that a method may see, so that validation and test images stay out of its reach.
        self._train, self._probe, self._calibration = data.train, data.probe, data.calibration
        self._input_shape = data.input_shape
        self._config = train
        self._task = task_of(dataclasses.replace(train, label_smoothing=0.0))
        self.classifies = self._task.classifies
        self._inputs = inputs or TrialInputs()
        self._teacher = self._inputs.teacher if train.distill_weight > 0 else None
        self._compute_format = compute_format
        self._fits = 0
        self._ended: tuple[bytes, ...] = ()  # states of trainings that are over
        self._training: Training | None = None  # the one that is going on
        self._resumable = True
        self.replays = bool(self._inputs.saved)

    @property
    def states(self) -> States | None:
        """Function that returns the states of the trainings so far; None where a method could not go on from them.

        A method goes on from within a training: it runs again, with the trainings before that one at their end. So all
        of them must have a state (see `pruning.base.Context.fit`), and be one after the other.
        """
        ended, training = self._ended, self._training
        return None if training is None or not self._resumable else lambda: (*ended, training.state())

    @override
    def calibration_batches(self, images: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._calibration.batches(min(256, images), device=self.device, limit=images)

    @override
    def probe_accuracy(self, net: nn.Module, images: int) -> float:
        return score(net, self._probe, self._config, compute_format=self._compute_format, limit=images)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._task.loss(outputs, targets)

    @override
    def reestimate_batchnorm(self, net: nn.Module) -> None:
        reestimate_batchnorm(
            net,
            self._calibration,
            device=self.device,
            images=self._inputs.batchnorm_images,
            compute_format=reading_format(net, self._config, self.device, self._compute_format),
        )

    @override
    def plan(self, epochs: int) -> TrainingPlan:
        return plan_training(self._train, self._config, epochs, self._config.lr)

    @override
    def fit(
        self,
        net: nn.Module,
        epochs: float,
        action: Action = NO_ACTION,
        *,
        rates: Rates = TRIAL_RATES,
        distillation: Distillation | None = None,
    ) -> Iterator[int]:
        self._fits += 1
        config, teacher = self._config, self._teacher
        if rates.peak is not None:
            config = dataclasses.replace(config, lr=rates.peak)
        if rates.constant is not None:
            config = dataclasses.replace(config, lr_scheduler="constant", warmup_epochs=0.0, lr=rates.constant)
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
            action=action,
            compute_format=self._compute_format,
            span=rates.span,
        )
        net = net.to(self.device)
        if self._inputs.rescales and not action:
            rescale(net, next(self.calibration_batches(1))[0])
        training = Training(net, self._train, config, training_run)
        self._resumable &= self._training is None and action.resumable
        saved = self._inputs.saved
        if self._fits <= len(saved):
            training.restore(saved[self._fits - 1])
        if self._fits < len(saved):
            self._ended += (saved[self._fits - 1],)
            yield from [training.finished] if training.finished else []
        else:
            yield from self._run(training)

    def _run(self, training: Training) -> Iterator[int]:
        """Run a training; yield its finished epochs, first those of the earlier attempt that it goes on from."""
        self._training = training
        self.replays &= training.finished > 0
        try:
            for finished in training.run(self._offer_states):
                yield finished
                self.replays = False
        except GeneratorExit:  # the method has seen enough
            self._end(training)
            raise
        self._end(training)

    def _end(self, training: Training) -> None:
        self._training = None
        if self._inputs.keep is not None and self._resumable:
            self._ended += (training.state(ended=True),)

    def _offer_states(self) -> None:
        if self._inputs.keep is not None and self.states is not None:
            self._inputs.keep(self.states)

    @override
    def latency_ratio(self, net: nn.Module, dense: nn.Module) -> float:
        net = copy.deepcopy(net)
        with locked(f"latency-{str(self.device).replace(':', '-')}"):  # beside trials, but no other measurement
            choose_forms(net, torch.zeros(1, *self._input_shape, device=self.device), fastest)
            return latency_ratio(for_inference(net), dense, self._input_shape, self.device)

    @override
    def integrated_learning_rate(self, epochs: float, span: tuple[float, float] = WHOLE) -> float:
        per_epoch = max(1, len(self._train) // self._config.batch_size)
        rate = self._config.lr
        return integrated_learning_rate(self._config, epochs=epochs, per_epoch=per_epoch, learning_rate=rate, span=span)
