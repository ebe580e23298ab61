"""What goes to a worker and what comes back: plain, picklable values."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pruning.base import Goal
from spaces.cost import Cost
from spaces.widths import Widths


class TrialState(StrEnum):
    """How a trial ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"  # ended early by a rung; its last snapshot still counts
    FAILED = "failed"


@dataclass(frozen=True)
class Trial:
    """A candidate to be tried: a goal, a method and that method's settings."""

    number: int
    method: str
    goal: Goal
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    arm: str = ""  # "uniform" for a control arm, empty for what the sampler proposed

    def key(self) -> str:
        """Return a canonical description of what will be computed, the same in every process.

        Two trials with one key would give the same result, so the second is answered from the first.
        """
        widths = None if self.goal.widths is None else dict(sorted(self.goal.widths.items()))
        budgets = sorted((b.quantity, b.limit) for b in self.goal.budgets) if widths is None else None
        settings = dict(sorted(self.settings.items()))
        return json.dumps([self.method, settings, widths, budgets], default=str, separators=(",", ":"))


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
class TrialResult:
    """What a trial gave; `checkpoint` holds the narrow net as `pruning.checkpoint` bytes until it is on disk."""

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
    checkpoint: bytes | None = None
    path: str = ""  # of the checkpoint, relative to the run folder, once written

    def without_checkpoint(self, path: str) -> "TrialResult":
        """Return the same result with its weights on disk at `path` instead of in memory."""
        return dataclasses.replace(self, checkpoint=None, path=path)
