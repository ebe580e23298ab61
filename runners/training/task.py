"""Task: what networks are trained for, which is a loss and a score to maximise. Classification is the built-in one.

A user's task is `--task package.module:factory`: a function without arguments, or a class, whose result has the
attributes of `UserTask` (docs/tasks.md).
"""

import copy
import functools
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from runners.config import CLASSIFICATION, TrainConfig
from runners.data.splits import Split
from spaces.errors import SlimfrontError
from spaces.registry import USER_ERRORS, import_code

LIKELIEST = 5  # classes, of top-5 accuracy
HIGHEST = 1.0 + 1e-6  # a score, with its rounding error


class TaskError(SlimfrontError):
    """A task that cannot be loaded, or whose loss or score is not what it must be."""


class Reading(Protocol):
    """The score of a network, read batch by batch."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch."""
        ...

    def compute(self) -> float:
        """Return the score over all batches, in [0, 1]."""
        ...

    def top5(self) -> float | None:
        """Return the share of images whose class is among the five likeliest; None without more than five classes."""
        return None


class Task(Protocol):
    """What networks are trained for.

    Attributes:
        score_name: what reports call the score.
        classifies: whether targets are class numbers of shape (B,) and outputs logits of shape (B, classes).
    """

    score_name: str
    classifies: bool

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        ...

    def reading(self, device: torch.device) -> Reading:
        """Return a reading of the score that has seen no batch."""
        ...


class _Hits(Reading):
    """A reading of top-1 and top-5 accuracy; it is synchronised with an accelerator once, in the end."""

    def __init__(self, device: torch.device) -> None:
        self._hits = torch.zeros((), dtype=torch.int64, device=device)
        self._among_five: Tensor | None = None
        self._seen = 0

    @override
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self._hits += (outputs.argmax(1) == targets).sum()
        self._seen += len(targets)
        if outputs.shape[1] > LIKELIEST:
            among = (outputs.topk(LIKELIEST, dim=1).indices == targets[:, None]).any(1).sum()
            self._among_five = among if self._among_five is None else self._among_five + among

    @override
    def compute(self) -> float:
        return int(self._hits) / self._seen if self._seen else 0.0

    @override
    def top5(self) -> float | None:
        return None if self._among_five is None else int(self._among_five) / self._seen


@dataclass(frozen=True)
class Classification(Task):
    """Cross-entropy and top-1 accuracy; readings have top-5 accuracy too.

    Attributes:
        label_smoothing: share of the target that is spread over all classes.
    """

    label_smoothing: float = 0.0
    score_name: str = "accuracy"
    classifies: bool = True

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    @override
    def reading(self, device: torch.device) -> Reading:
        return _Hits(device)


@dataclass(frozen=True)
class UserTask(Task):
    """A user's task.

    Attributes:
        name: the text by which it was named, for messages.
        given: object with `loss(outputs, targets)`, which returns a scalar; `score`, a function of (outputs, targets)
            that returns the score of every image, of shape (B,), or their mean, or an object with `update`, `compute`
            and `reset` such as a metric of torchmetrics; `score_name`; and, where targets are class numbers and outputs
            logits, `classifies = True`.
    """

    name: str
    given: Any
    score_name: str
    classifies: bool

    @classmethod
    def load(cls, name: str) -> "UserTask":
        """Call the factory "package.module:factory".

        Raises:
            TaskError: it cannot be imported or called, or returns no task.
        """
        try:
            given = import_code(name)()
        except ImportError as error:
            raise TaskError(
                f"--task {name!r} cannot be loaded ({error}); give {CLASSIFICATION}, or package.module:factory "
                "importable from the current folder"
            ) from error
        except USER_ERRORS as error:
            raise TaskError(
                f"--task {name!r} raised {type(error).__name__}: {error}; it must be a function without arguments, or "
                "a class, that gives a task; --debug shows where"
            ) from error
        score_name = getattr(given, "score_name", "")
        if not callable(getattr(given, "loss", None)) or not hasattr(given, "score"):
            raise TaskError(f"--task {name!r} gave a {type(given).__name__} without loss or score; it must have both")
        if not isinstance(score_name, str) or not score_name.strip() or len(score_name) > 40:  # noqa: PLR2004
            raise TaskError(f"--task {name!r} has score_name {score_name!r}; it must name the score, as in 'mean IoU'")
        return cls(name, given, score_name.strip(), bool(getattr(given, "classifies", False)))

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = self.given.loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.ndim:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TaskError(f"the loss of --task {self.name} is a {found}; it must be a scalar tensor, a batch's mean")
        return loss

    @override
    def reading(self, device: torch.device) -> Reading:
        score = self.given.score
        if not hasattr(score, "update"):
            return _Mean(self)
        metric = copy.deepcopy(score)
        metric.reset()
        return _Metric(self.name, metric.to(device) if isinstance(metric, nn.Module) else metric)


class _Mean(Reading):
    """The mean over images of what a function of a user returns for every batch."""

    def __init__(self, task: UserTask) -> None:
        self._task, self._sum, self._seen = task, 0.0, 0

    @override
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        scores = torch.as_tensor(self._task.given.score(outputs, targets))
        if scores.ndim and tuple(scores.shape) != (len(outputs),):
            raise TaskError(
                f"the score of --task {self._task.name} has shape {tuple(scores.shape)} for {len(outputs)} images; it "
                f"must be a score per image, ({len(outputs)},), or their mean"
            )
        self._sum += float(scores.detach().cpu().double().mean()) * len(outputs)
        self._seen += len(outputs)

    @override
    def compute(self) -> float:
        return _checked(self._sum / self._seen if self._seen else 0.0, self._task.name)


class _Metric(Reading):
    """A metric of a user, such as one of torchmetrics."""

    def __init__(self, name: str, metric: Any) -> None:
        self._name, self._metric, self._seen = name, metric, 0

    @override
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self._metric.update(outputs, targets)
        self._seen += len(outputs)

    @override
    def compute(self) -> float:
        return _checked(float(self._metric.compute()) if self._seen else 0.0, self._name)


def _checked(score: float, name: str) -> float:
    """Return a score; one that is not finite is left to the caller, as that of a network that diverged."""
    if not (score != score or -1e-6 <= score <= HIGHEST):
        raise TaskError(
            f"the score of --task {name} is {score:.6g}; it must lie in [0, 1], and higher must be better: scale it, "
            "as in 1 / (1 + error)"
        )
    return min(1.0, max(0.0, score))


def task_of(config: TrainConfig) -> Task:
    """Return the task of a training; that of a user is loaded once per process.

    Raises:
        TaskError: it cannot be loaded.
    """
    return Classification(config.label_smoothing) if config.task == CLASSIFICATION else _load(config.task)


_load = functools.cache(UserTask.load)


def check_task(task: Task, net: nn.Module, split: Split) -> None:
    """Try a user's loss and score on two images of a split, before any training.

    Args:
        net: on the CPU, in evaluation mode; not changed.

    Raises:
        TaskError: they raise an error, or are not what they must be.
    """
    if not isinstance(task, UserTask):
        return
    images, targets = next(split.batches(2, device=torch.device("cpu"), limit=2))
    with torch.no_grad():
        outputs = net(images).float()
    shapes = f"outputs of shape {tuple(outputs.shape)}, targets of shape {tuple(targets.shape)} of {targets.dtype}"
    for part in ("loss", "score"):
        try:
            if part == "loss":
                leaf = outputs.clone().requires_grad_()
                torch.autograd.grad(task.loss(leaf, targets), leaf)
            else:
                reading = task.reading(outputs.device)
                reading.update(outputs, targets)
                reading.compute()
        except TaskError:
            raise
        except USER_ERRORS as error:
            reason = " ".join(str(error).split())
            raise TaskError(
                f"the {part} of --task {task.name} raised {type(error).__name__}: {reason} for {shapes}; --debug shows "
                "where"
            ) from error
