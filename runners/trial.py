"""What goes to a worker and what comes back: plain, picklable values."""

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


class TrialState(StrEnum):
    """How a trial ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"  # ended at one of its reports, e.g. when the time was over; its last snapshot still counts
    FAILED = "failed"


@dataclass(frozen=True)
class TrainingSegment:
    """A part of a trial's training, after which the trial pauses at a rung.

    Attributes:
        epochs: of this part.
        trained: epochs before it; 0 begins with the method.
        start: the narrow net to go on from, as `pruning.checkpoint` bytes; a first leg has none.
    """

    epochs: int
    trained: int = 0
    start: bytes | None = field(default=None, repr=False)

    @property
    def compares(self) -> bool:
        """Whether it is there to compare candidates before any training; no network of it is kept."""
        return self.epochs == 0

    @property
    def end(self) -> int:
        """Epochs that the trial has had after this leg."""
        return self.trained + self.epochs


@dataclass(frozen=True)
class Trial:
    """A candidate to be tried: a goal, a method and that method's settings.

    Attributes:
        training: fields of `TrainConfig` that differ from those of the search.
        leg: the part of its training that a runner is asked for, None for all of it at once. What was tried is the
            candidate, so neither `key` nor a record knows of it.
    """

    number: int
    method: str
    goal: Goal
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    baseline: str = ""  # "uniform" for a control arm, empty for what the sampler proposed
    training: Mapping[str, float] = field(default_factory=dict)
    segment: TrainingSegment | None = None

    def started_from(self, weights: bytes | None) -> "Trial":
        """Return the trial with these weights to go on from in its leg."""
        segment = self.segment
        return (
            self if segment is None else dataclasses.replace(self, segment=dataclasses.replace(segment, start=weights))
        )

    def key(self) -> str:
        """Return a canonical description of what will be computed, the same in every process.

        Two trials with one key would give the same result, so the second is answered from the first.
        """
        widths = None if self.goal.widths is None else dict(sorted(self.goal.widths.items()))
        budgets = sorted((b.quantity, b.limit) for b in self.goal.budgets) if widths is None else None
        settings = dict(sorted(self.settings.items()))
        training = [dict(sorted(self.training.items()))] if self.training else []  # none leaves the keys as they were
        return json.dumps([self.method, settings, widths, budgets, *training], default=str, separators=(",", ":"))


def derive_seed(run_seed: int, key: str) -> int:
    """Derive a trial's seed from the run's seed and the candidate alone, so that order and workers do not matter."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}:{key}".encode()).digest()[:4], "big")


@dataclass(frozen=True)
class EpochReport:
    """How a running trial stands after an epoch (epoch 0: cut, BatchNorm re-estimated, not trained)."""

    trial: int
    epoch: int
    accuracy: float  # validation, in [0, 1]
    seconds: float  # since the trial began


@dataclass(frozen=True)
class Confirmation:
    """How a network does when it is trained again from the dense one with fresh seeds, each read on test once.

    Attributes:
        seeds: of the trainings that gave a network, none of them that of the search.
        accuracies: of those networks on test, in [0, 1].
        flops: of those networks.
        images: on which each accuracy was read.
        at: what the trainings were given, "widths" or "budgets".
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
        """The mean accuracy; None when every training failed."""
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def std(self) -> float | None:
        """The standard deviation over seeds, with n - 1; None for fewer than two."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


@dataclass(frozen=True)
class TrialResult:
    """What a trial gave; `checkpoint` holds the narrow net as `pruning.checkpoint` bytes until it is on disk.

    Networks that the method passed on its way to the goal are results of the trial too, in `intermediate_networks`:
    each what the trial would have come to had it ended there, with the one report of its measurement as curve.

    A trial that grows through rungs is the best network of its legs: a longer training that came out worse is in
    `rungs` and `curve`, and its network is not kept.
    """

    trial: Trial
    state: TrialState
    accuracy: float | None = None  # validation, in [0, 1]; None when FAILED
    cost: Cost | None = None  # re-counted on the real narrow net
    widths: Widths | None = None
    curve: tuple[EpochReport, ...] = ()
    seconds: float = 0.0
    train_seconds: float = 0.0  # the part spent in the method, training and evaluation
    error: str = ""
    note: Mapping[str, Any] = field(default_factory=dict)
    test_accuracy: float | None = None  # read once, for front members, at the end
    confirmation: Confirmation | None = None  # of front members, when asked for
    checkpoint: bytes | None = None
    latency: tuple[Mapping[str, Any], ...] = ()  # readings of `runners.latency.meter` as plain data, one per batch size
    path: str = ""  # of the checkpoint, relative to the run folder, once written
    intermediate_networks: "tuple[TrialResult, ...]" = ()  # dearest first
    rungs: tuple[tuple[int, float], ...] = ()  # (epochs so far, accuracy) at the end of each leg; () trained at once
    intermediate_index: int = 0  # which of those of its trial this is, from 1; 0 for what the trial came to in the end

    @property
    def timed(self) -> Mapping[str, Any] | None:
        """The reading that budgets and the latency axis go by: of the first batch size; None without a good one."""
        return self.latency[0] if self.latency and not self.latency[0]["refused"] else None

    @property
    def trained(self) -> int | None:
        """How many epochs the trial has been trained; None where nothing says so."""
        if self.rungs:
            return self.rungs[-1][0]
        return self.curve[-1].epoch if self.curve else None

    @property
    def label(self) -> str:
        """What people call this network: "7" for that of trial 7, "7.2" for the second that it passed."""
        return f"{self.trial.number}.{self.intermediate_index}" if self.intermediate_index else str(self.trial.number)

    @property
    def stem(self) -> str:
        """What its files are called: "0007" or "0007-p2"."""
        return f"{self.trial.number:04d}" + (f"-p{self.intermediate_index}" if self.intermediate_index else "")

    @property
    def networks(self) -> "tuple[TrialResult, ...]":
        """Every network of the trial, its own first."""
        return (self, *self.intermediate_networks)

    def with_each(self, change: "Callable[[TrialResult], TrialResult]") -> "TrialResult":
        """Return the result with every network of the trial changed, one by one."""
        return dataclasses.replace(
            change(self), intermediate_networks=tuple(change(each) for each in self.intermediate_networks)
        )

    @property
    def checkpoints(self) -> Mapping[str, bytes]:
        """The weights of every network of the trial that are in memory, by its label."""
        return {each.label: each.checkpoint for each in self.networks if each.checkpoint is not None}

    def with_checkpoints(self, checkpoints: Mapping[str, bytes]) -> "TrialResult":
        """Return the same result with these weights in memory, by the labels of its networks, and no others."""
        return self.with_each(lambda each: dataclasses.replace(each, checkpoint=checkpoints.get(each.label)))

    def without_checkpoint(self, path: str) -> "TrialResult":
        """Return the same result with its weights on disk at `path` instead of in memory."""
        return dataclasses.replace(self, checkpoint=None, path=path)
