"""Trial, which a runner sends to a worker, and TrialResult, which comes back: plain values that can be pickled."""

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pruning.base import Goal
from spaces.cost import Cost
from spaces.widths import Widths

TEACHER = "teacher"  # in the note of a network with final training: DENSE or the label of its last teacher
DENSE = "dense"
DISTILL_WEIGHT = "distill_weight"  # in the note beside it
SETTLED_SHARE = 5  # one in so many of the last segment's epochs counts for the settled accuracy


class TrialState(StrEnum):
    """How a trial ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"  # ended early at one of its reports, e.g. at a time limit; its last snapshot is its result
    FAILED = "failed"


@dataclass(frozen=True)
class Teaching:
    """The distillation of a training segment.

    Attributes:
        weight: in [0, 1], of KL(teacher || net); the loss on labels has the rest.
        teacher: label of the trained narrow network that is the teacher; empty for the dense network.
        weights: of that network, as `pruning.checkpoint` bytes; None for the dense network.
    """

    weight: float
    teacher: str = ""
    weights: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class TrainingSegment:
    """A part of a trial's training, after which the trial pauses at a rung.

    Attributes:
        epochs: epochs of this segment.
        trained: epochs before this segment; with 0 it begins with the pruning method.
        start: the network to go on from, as `pruning.checkpoint` bytes: that of the segment before, or in a first
            segment that of the trial's parent; None cuts the dense network.
        final: whether it belongs to the final training, which trains the best networks on after the search.
        teaching: None takes the distillation of the trial.
        completes: whether the final training of the trial ends with it; before it, entrants are compared at a rung.
    """

    epochs: int
    trained: int = 0
    start: bytes | None = field(default=None, repr=False)
    final: bool = False
    teaching: Teaching | None = None
    completes: bool = False

    @property
    def end(self) -> int:
        """Epochs of the trial at the end of this segment."""
        return self.trained + self.epochs


@dataclass(frozen=True)
class SavedTraining:
    """The state of a running trial, from which it goes on when its worker is lost.

    Attributes:
        states: of the trainings of the trial so far, as `runners.training.loop.Training` gives them; all but the last
            had ended.
        curve: the reports so far; intermediate_networks: those so far.
        seconds, active_seconds: of `runners.evaluation.progress.TrialProgress`.
        within_epoch: whether it is a state within an epoch, not that of the last report.
    """

    states: tuple[bytes, ...] = field(repr=False)
    curve: "tuple[EpochReport, ...]"
    intermediate_networks: "tuple[TrialResult, ...]"
    seconds: float
    active_seconds: float
    within_epoch: bool = False


@dataclass(frozen=True)
class Trial:
    """A candidate to evaluate: a goal, a pruning method and the settings of the method.

    Attributes:
        baseline: widths of a baseline of the search, "uniform" or "own" (the method finds them); empty for a candidate
            of the search itself.
        training: fields of `TrainConfig` that override those of the search.
        parent: label of the network that this one is cut from, trained in an earlier trial; empty cuts the dense
            network.
        final: whether the final training made the trial, beyond the trials of the search.
        segment: the part of the training that a runner is asked for; None asks for all of it. It is no part of the
            candidate, so neither `key` nor the stored trial includes it.
        pool: candidates that a runner is asked to compare instead of training the trial: all or some of a screening
            pool. They have the method, the settings and the parent of the trial, so statistics and the weights in its
            segment serve them all. It is no part of the candidate either.
        saved: the last state of an earlier attempt, whose worker was lost; None begins anew. It is no part of the
            candidate either.
    """

    number: int
    method: str
    goal: Goal
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    baseline: str = ""
    training: Mapping[str, int | float] = field(default_factory=dict)
    parent: str = ""
    final: bool = False
    segment: TrainingSegment | None = None
    pool: "tuple[Trial, ...]" = ()
    saved: SavedTraining | None = None

    def without_weights(self) -> "Trial":
        """Return the trial without the weights that it starts from, those of its teacher, and its saved state."""
        segment = self.segment
        if segment is not None:
            teaching = None if segment.teaching is None else dataclasses.replace(segment.teaching, weights=None)
            segment = dataclasses.replace(segment, start=None, teaching=teaching)
        return dataclasses.replace(self, segment=segment, saved=None)

    def started_from(self, weights: bytes | None) -> "Trial":
        """Return the trial with these weights as the start of its segment; without a segment, the same trial."""
        if self.segment is None:
            return self
        return dataclasses.replace(self, segment=dataclasses.replace(self.segment, start=weights))

    def key(self) -> str:
        """Return a canonical description of the candidate, the same in every process.

        Two trials with the same key have the same result, so the second need not be evaluated.
        """
        widths = None if self.goal.widths is None else dict(sorted(self.goal.widths.items()))
        budgets = sorted((budget.quantity, budget.limit) for budget in self.goal.budgets) if widths is None else None
        settings = dict(sorted(self.settings.items()))
        further: list[dict[str, Any]] = [dict(sorted(self.training.items()))] if self.training else []
        further += [{"parent": self.parent}] if self.parent else []
        return json.dumps([self.method, settings, widths, budgets, *further], default=str, separators=(",", ":"))

    def candidate_key(self) -> str:
        """Return the key of the same candidate as cut from the dense network, whatever this trial is cut from."""
        return dataclasses.replace(self, parent="").key()


def derive_seed(run_seed: int, key: str) -> int:
    """Derive the seed of a trial from that of the run and the candidate alone, whatever the order and the workers."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}:{key}".encode()).digest()[:4], "big")


@dataclass(frozen=True)
class EpochReport:
    """Validation accuracy of a running trial after an epoch (epoch 0: cut, BatchNorm re-estimated, not trained)."""

    trial: int
    epoch: int
    accuracy: float  # validation, in [0, 1]
    seconds: float  # since the trial began
    proxy: float | None = None  # of `runners.evaluation.proxy`, of epoch 0; higher is better


@dataclass(frozen=True)
class ScreenedCandidate:
    """A candidate of a screening pool right after its cut.

    Attributes:
        cost: as its method states it.
        proxy: higher is better; None if it failed.
    """

    cost: Cost | None = None
    proxy: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Confirmation:
    """Test accuracies of networks that were trained again from the dense one with new seeds, each read once.

    Attributes:
        seeds: of the trainings that gave a network; none is the seed of the search.
        accuracies: of these networks on the test images, in [0, 1].
        flops: of these networks.
        images: number of test images.
        at: the goal of the trainings, "widths" or "budgets".
        errors: reasons of the trainings that failed.
    """

    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    flops: tuple[int, ...]
    images: int
    at: str = "widths"
    errors: tuple[str, ...] = ()

    @property
    def mean(self) -> float | None:
        """The mean accuracy; None if every training failed."""
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def std(self) -> float | None:
        """The sample standard deviation over seeds (n - 1); None for fewer than two."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial.

    Intermediate networks, which the method made before its goal, are results too: each is the result that the trial
    would have had if it had ended there, and its curve is the one report of its measurement.

    A trial that is trained in segments has the best network of all segments: the network of a longer training with a
    lower accuracy is not kept, but is in `rungs` and `curve`.

    Attributes:
        accuracy: on the validation images, in [0, 1]; None if FAILED.
        cost: counted on the real narrow network.
        train_seconds: the part of `seconds` that was spent in the method, training and evaluation.
        test_accuracy: read once at the end of a search, for members of the front; val_top5 and test_top5 are read with
            it, where classes are more than five.
        confirmation: of members of the front, if the search was asked for it.
        checkpoint: the narrow network as `pruning.checkpoint` bytes, until it is on disk.
        latency: readings of `runners.latency.meter` as plain data, one per batch size.
        path: of the checkpoint on disk, relative to the run folder.
        intermediate_networks: in order of falling cost.
        rungs: (epochs so far, accuracy) at the end of each segment; empty for a trial without segments.
        final_epochs: epochs of final training, the last of those in `rungs`.
        intermediate_index: from 1 for an intermediate network of its trial; 0 for the final network.
        screened: the candidates of `trial.pool`, in its order; then the result has no network.
        lost: it FAILED because its workers were lost or hung, not for a reason of its own; another process may try it
            again.
    """

    trial: Trial
    state: TrialState
    accuracy: float | None = None
    cost: Cost | None = None
    widths: Widths | None = None
    curve: tuple[EpochReport, ...] = ()
    seconds: float = 0.0
    train_seconds: float = 0.0
    error: str = ""
    note: Mapping[str, Any] = field(default_factory=dict)
    test_accuracy: float | None = None
    confirmation: Confirmation | None = None
    checkpoint: bytes | None = None
    latency: tuple[Mapping[str, Any], ...] = ()
    path: str = ""
    intermediate_networks: "tuple[TrialResult, ...]" = ()
    rungs: tuple[tuple[int, float], ...] = ()
    final_epochs: int = 0
    intermediate_index: int = 0
    screened: tuple[ScreenedCandidate, ...] = ()
    lost: bool = False
    val_top5: float | None = None
    test_top5: float | None = None

    @property
    def timed(self) -> Mapping[str, Any] | None:
        """The reading of the first batch size, for budgets and objectives of latency; None if it was refused."""
        return self.latency[0] if self.latency and not self.latency[0]["refused"] else None

    @property
    def trained(self) -> int | None:
        """Number of epochs that the trial was trained; None if it is not known."""
        if self.rungs:
            return self.rungs[-1][0]
        return self.curve[-1].epoch if self.curve else None

    @property
    def searched_accuracy(self) -> float | None:
        """The accuracy before the final training; None for a network that the final training made."""
        if not self.final_epochs:
            return self.accuracy
        return max((accuracy for _, accuracy in self.searched_rungs), default=None)

    @property
    def searched_rungs(self) -> tuple[tuple[int, float], ...]:
        """The rungs before the final training."""
        return tuple(rung for rung in self.rungs if rung[0] <= self.rungs[-1][0] - self.final_epochs)

    @property
    def settled_accuracy(self) -> float | None:
        """The mean accuracy over the last fifth of the epochs of final training, at least two of them.

        One lucky reading moves it less.

        It is `accuracy` without final training, and where the network of an earlier segment was kept.
        """
        if self.accuracy is None or not self.final_epochs or self.rungs[-1][1] != self.accuracy:
            return self.accuracy
        epochs = self.rungs[-1][0] - self._rung_before_last
        count = min(epochs, max(2, epochs // SETTLED_SHARE))
        return statistics.fmean(report.accuracy for report in self.curve[-count:])

    @property
    def _rung_before_last(self) -> int:
        return self.rungs[-2][0] if len(self.rungs) > 1 else 0

    @property
    def label(self) -> str:
        """The name of the network for a reader: "7" for trial 7, "7.2" for its second intermediate network."""
        return f"{self.trial.number}.{self.intermediate_index}" if self.intermediate_index else str(self.trial.number)

    @property
    def stem(self) -> str:
        """The stem of the file names of the network: "0007" or "0007-p2"."""
        return f"{self.trial.number:04d}" + (f"-p{self.intermediate_index}" if self.intermediate_index else "")

    @property
    def networks(self) -> "tuple[TrialResult, ...]":
        """All networks of the trial, the final one first."""
        return (self, *self.intermediate_networks)

    def map_networks(self, change: "Callable[[TrialResult], TrialResult]") -> "TrialResult":
        """Return the result with `change` applied to every network of the trial."""
        intermediate_networks = tuple(change(network) for network in self.intermediate_networks)
        return dataclasses.replace(change(self), intermediate_networks=intermediate_networks)

    @property
    def checkpoints(self) -> Mapping[str, bytes]:
        """Label -> weights, for the networks of the trial whose weights are in memory."""
        return {network.label: network.checkpoint for network in self.networks if network.checkpoint is not None}

    def with_checkpoints(self, checkpoints: Mapping[str, bytes]) -> "TrialResult":
        """Return the result with these weights in memory, given by label, and no others."""
        return self.map_networks(
            lambda network: dataclasses.replace(network, checkpoint=checkpoints.get(network.label))
        )

    def without_checkpoint(self, path: str) -> "TrialResult":
        """Return the result with its weights on disk at `path` instead of in memory."""
        return dataclasses.replace(self, checkpoint=None, path=path)
