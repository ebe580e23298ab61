"""The settings of a search that runners read: images, training, where trials run, how latency is measured."""

import dataclasses
from dataclasses import dataclass

PADDING_MODES = ("reflect", "constant")  # as torchvision names them
SCALES = ("set", "half")
SCHEDULES = ("one_cycle", "cosine", "steps", "constant")
DTYPES = ("float32", "bfloat16", "float16")
ENGINES = ("eager", "torch.compile", "onnxruntime")


@dataclass(frozen=True)
class DataConfig:
    """Which labelled images a search uses.

    Attributes:
        name: digits, cluttered_digits, mnist, cifar10, cifar100, "imagefolder:PATH" or "package.module:factory".
        data_dir: where sets on disk are looked for; empty takes the user's cache folder.
        image_size: side of the square images; 0 takes what is natural for the set.
        val_share: share of the training images set apart for validation, cut by the run's seed.
        padding_mode: what fills the border of a shifted training image, "reflect" (the image) or "constant" (black).
        min_crop_area: least share of the area that a random crop of a training image file keeps.
        scale: of pixel values, "set" (as is natural for the set, its mean and deviation as a rule) or "half" (-1 to 1).
    """

    name: str = "digits"
    data_dir: str = ""
    image_size: int = 0
    val_share: float = 0.2
    padding_mode: str = "reflect"
    min_crop_area: float = 0.35
    scale: str = "set"


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained; the same loop trains the dense net and fine-tunes the narrow ones.

    Attributes:
        epochs: fine-tuning epochs of a trial, spent by its method as it sees fit.
        dense_epochs: epochs of the dense net when no weights are given.
        batch_size: images per step.
        learning_rate: peak rate of the fine-tuning schedule, per step, for `batch_size` images.
        dense_learning_rate: peak rate for the dense net.
        momentum: of SGD.
        nesterov: whether the momentum looks ahead.
        weight_decay: L2 penalty of SGD on the weights of layers; BatchNorm and biases have none.
        bias_lr_mult: multiplies the learning rate of biases, those of BatchNorm too, as Caffe's 2 does.
        label_smoothing: share of the target spread over all classes.
        mixup: images are mixed in pairs with a share drawn from Beta(mixup, mixup); 0 mixes none.
        clip_grad_norm: norm over all weights beyond which gradients are scaled down; 0 never does.
        schedule: "one_cycle", "cosine", "steps" or "constant"; of fine-tuning.
        milestones: epochs after which "steps", and no other, multiplies the rate by `milestone_factor`.
        milestone_factor: in (0, 1], for fine-tuning and the dense net alike.
        warm_up_epochs: over which the rate climbs linearly from 0; "one_cycle" has a climb of its own.
        dense_schedule: of the dense net; empty takes that of fine-tuning, with the two below.
        dense_milestones: as `milestones`, for the dense net.
        dense_warm_up_epochs: as `warm_up_epochs`, for the dense net.
        distill_weight: weight in [0, 1] of KL(dense || narrow) on the logits; 0 switches distillation off.
        distill_temperature: softens both logits of that term.
        precision: "auto" takes bfloat16/float16 autocast where the device measures faster, "float32" never.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
    """

    epochs: int = 1
    dense_epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 0.008
    dense_learning_rate: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    bias_lr_mult: float = 1.0
    label_smoothing: float = 0.1
    mixup: float = 0.0
    clip_grad_norm: float = 5.0
    schedule: str = "one_cycle"
    milestones: tuple[float, ...] = ()
    milestone_factor: float = 0.1
    warm_up_epochs: float = 0.0
    dense_schedule: str = ""
    dense_milestones: tuple[float, ...] = ()
    dense_warm_up_epochs: float = 0.0
    distill_weight: float = 0.0
    distill_temperature: float = 2.0
    precision: str = "auto"
    device: str = "auto"

    def for_dense(self) -> "TrainConfig":
        """Return the training of the dense net: the same settings, with its own epochs, rate and schedule."""
        return dataclasses.replace(
            self,
            epochs=self.dense_epochs,
            learning_rate=self.dense_learning_rate,
            schedule=self.dense_schedule or self.schedule,
            milestones=self.dense_milestones,
            warm_up_epochs=self.dense_warm_up_epochs,
        )


def schedule_problem(config: TrainConfig) -> str:
    """Say what is wrong with schedule, milestones and warm-up of fine-tuning; empty when nothing is."""
    if config.schedule not in SCHEDULES:
        return f"schedule is {config.schedule!r} and must be one of {', '.join(SCHEDULES)}"
    if not 0 < config.milestone_factor <= 1:
        return f"milestone_factor is {config.milestone_factor!r} and must be in (0, 1]"
    if not 0 <= config.warm_up_epochs < float("inf"):
        return f"warm_up_epochs is {config.warm_up_epochs!r} and must be 0 or more"
    if config.schedule == "steps" and not config.milestones:
        return "schedule is 'steps' without milestones; name the epochs at which the rate falls, or take 'constant'"
    if list(config.milestones) != sorted({each for each in config.milestones if each > 0}):
        return f"milestones are {config.milestones} and must be epochs above 0 in rising order"
    if config.schedule == "one_cycle" and config.warm_up_epochs:
        return f"warm_up_epochs is {config.warm_up_epochs}, and schedule 'one_cycle' has a climb of its own; take 0"
    return ""


@dataclass(frozen=True)
class RunnerConfig:
    """Where trials run.

    Attributes:
        name: "auto" (ray when more than one worker fits, else local), "ray" or "local".
        cpus_per_trial: CPU cores, and so threads, of one trial.
        gpus_per_trial: accelerators of one trial; 0.5 lets two trials share one, 0 takes one where training uses CUDA.
        ray_address: address of a running cluster, "auto" to find one, empty to start Ray here.
    """

    name: str = "auto"
    cpus_per_trial: int = 1
    gpus_per_trial: float = 0.0
    ray_address: str = ""


AUTO_DEVICE, NO_DEVICE = "auto", "none"


@dataclass(frozen=True)
class LatencyConfig:
    """How networks are timed, beside the dense one: those of the front, at the end of a search.

    Under a latency budget, or with latency as an axis, during it, at the first batch size.

    Attributes:
        device: "cpu:1thread", "cpu:2threads", "cuda:0" or "mps"; "auto" is that of the training ("cpu:1thread"
            for a processor), "none" measures nothing.
        batch: images of one inference, as in 1,8; a latency budget is for the first.
        dtype: "float32", "bfloat16" or "float16", of weights and images.
        channels_last: whether weights and images are kept in that memory format.
        engine: "eager", "torch.compile" or "onnxruntime" (where it is installed).
    """

    device: str = "auto"
    batch: tuple[int, ...] = (1,)
    dtype: str = "float32"
    channels_last: bool = False
    engine: str = "eager"

    @property
    def measures(self) -> bool:
        """Whether anything is timed; runs of before said so by an empty text."""
        return self.device not in ("", NO_DEVICE)
