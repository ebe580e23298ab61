"""What a runner needs from above, and what runs trials."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from runners.trial import EpochReport, Trial, TrialResult
from spaces.registry import Registry

if TYPE_CHECKING:
    from runners.evaluate import Workbench

RUNNERS = Registry(
    "runner",
    {
        "local": "runners.local:LocalRunner",
        "ray": "runners.ray_tune:RayRunner",
        "simulated": "runners.simulated:SimulatedRunner",
    },
)


@dataclass(frozen=True)
class DataConfig:
    """Which labelled images a search uses.

    Attributes:
        data: a name of `runners.data.DATASETS`, "imagefolder:PATH" or "package.module:factory".
        data_dir: where sets on disk are looked for; empty takes the user's cache folder.
        image_size: side of the square images; 0 takes what is natural for the set.
        val_share: share of the training images set apart for validation, cut by the run's seed.
    """

    data: str = "digits"
    data_dir: str = ""
    image_size: int = 0
    val_share: float = 0.2


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained; the same loop trains the dense net and fine-tunes the narrow ones.

    Attributes:
        epochs: fine-tuning epochs of a trial, spent by its method as it sees fit.
        dense_epochs: epochs of the dense net when no weights are given.
        batch_size: images per step.
        learning_rate: peak rate of the fine-tuning schedule, per step, for `batch_size` images.
        dense_learning_rate: peak rate for the dense net.
        momentum: Nesterov momentum of SGD.
        weight_decay: L2 penalty of SGD.
        label_smoothing: share of the target spread over all classes.
        schedule: "one_cycle" or "cosine".
        distill_weight: weight in [0, 1] of KL(dense || narrow) on the logits; 0 switches distillation off.
        distill_temperature: softens both logits of that term.
        precision: "auto" takes bfloat16/float16 autocast where the device measures faster, "float32" never.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
    """

    epochs: int = 1
    dense_epochs: int = 2
    batch_size: int = 64
    learning_rate: float = 0.05
    dense_learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    schedule: str = "one_cycle"
    distill_weight: float = 0.0
    distill_temperature: float = 2.0
    precision: str = "auto"
    device: str = "auto"


@dataclass(frozen=True)
class RunnerConfig:
    """Where trials run.

    Attributes:
        runner: "auto" (ray when more than one worker fits, else local), "ray" or "local".
        cpus_per_trial: CPU cores, and so threads, of one trial.
        gpus_per_trial: accelerators of one trial; 0.5 lets two trials share one.
        ray_address: address of a running cluster, "auto" to find one, empty to start Ray here.
    """

    runner: str = "auto"
    cpus_per_trial: int = 1
    gpus_per_trial: float = 0.0
    ray_address: str = ""


class AskTell(Protocol):
    """Where trials come from and where results go; implemented above (search.Study)."""

    def ask(self) -> Trial | None:
        """Return the next trial, or None when there are no more."""
        ...

    def report(self, report: EpochReport) -> bool:
        """Take an intermediate report; return whether the trial goes on."""
        ...

    def tell(self, result: TrialResult) -> None:
        """Take a finished trial, of whatever state."""
        ...


# A running trial: yields a report per epoch, returns its result (generators are how both runners step it).
Evaluation = Iterator[EpochReport]
WorkbenchFactory = Callable[[], "Workbench"]


class Runner(Protocol):
    """Takes trials from an AskTell until it has no more, evaluates them, and tells the results."""

    def run(self, ask_tell: AskTell, workbench: "Workbench") -> None:
        """Return when every trial is told. A KeyboardInterrupt passes through after workers are stopped."""
        ...
