"""The settings that runners read: images, training, where trials run, how latency is measured."""

import dataclasses
import os
import shlex
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from annotated_types import Interval, Predicate

from spaces.errors import ConfigError
from spaces.fields import (
    MOST,
    BelowOne,
    Flag,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_settings,
)

LRScheduler = Literal["one_cycle", "cosine", "multistep", "constant"]
AUGMENTATIONS = ("shift", "flip", "crop", "randaugment", "erasing", "mixup", "cutmix")  # names for DataConfig.augment
IMAGE_FOLDER = "imagefolder:"  # before the path, in DataConfig.name
CLASSIFICATION = "classification"  # the built-in task
AUTO_DEVICE, NO_DEVICE = "auto", "none"  # of LatencyConfig.device


@dataclass(frozen=True)
class DataConfig:
    """Which labelled images a search uses.

    Attributes:
        name: digits (1,797 handwritten ones), coloured_digits (1,750 in colour), cluttered_digits (8,000, harder),
            glyphs, mnist, cifar10, cifar100, "imagefolder:PATH" or "package.module:factory".
        data_dir: folder in which datasets are looked for; empty takes the user's cache folder.
        image_size: side of the square images in pixels; 0 takes the dataset's own.
        val_share: share of the training images set apart for validation, cut by the run's seed.
        padding_mode: what fills the border of a shifted training image, "reflect" (the image) or "constant" (black).
        min_crop_area: least share of the area that a random crop of a training image file keeps.
        scale: scale of pixel values, "set" (the dataset's own, as a rule its mean and deviation) or "half" (-1 to 1).
        augment: random changes of training images, some of shift, flip, crop, randaugment, erasing, mixup and cutmix,
            as in flip,crop; "none"; or "auto": shift for digits and glyphs, shift and flip for CIFAR, flip and crop for
            imagefolder, none for package.module:factory.
        workers: number of processes that read image files and the images of package.module:factory in each trial; 0
            reads in the training process; -1 takes one where networks are trained on the processor, else as many as
            torch has threads.
    """

    name: Annotated[
        str, Flag("data"), Predicate(bool), "a dataset name, imagefolder:PATH or package.module:factory"
    ] = "coloured_digits"
    data_dir: str = ""
    image_size: Annotated[int, Interval(ge=0, le=4096), "a side in pixels up to 4096, or 0 for the set's own"] = 0
    val_share: Annotated[float, Interval(gt=0, lt=1), "a share strictly between 0 and 1"] = 0.2
    padding_mode: Literal["reflect", "constant"] = "reflect"
    min_crop_area: Annotated[float, Interval(gt=0, le=1), "a share of the area in (0, 1]"] = 0.35
    scale: Literal["set", "half"] = "set"
    augment: str = "auto"
    workers: Annotated[
        int, Flag("data-workers"), Interval(ge=-1, le=1024), "a number up to 1024, or -1 to choose it"
    ] = -1

    def __post_init__(self) -> None:
        """Check the settings; raises ConfigError."""
        check_settings(self)
        _ = self.augmentations

    @property
    def files(self) -> tuple[str, ...]:
        """Paths that trials read while they are trained; none where the images are in memory."""
        kind, _, path = self.name.partition(":")
        named = (path if kind == "imagefolder" else "", self.data_dir if path else "")
        return tuple(os.path.abspath(name) for name in named if name)

    @cached_property
    def augmentations(self) -> tuple[str, ...] | None:
        """The names of `augment`; None for "auto".

        Raises:
            ConfigError: an unknown name.
        """
        return parse_augment(self.augment)


def is_code(name: str) -> bool:
    """Whether the name of a model or a dataset is that of a function, "package.module:factory"."""
    return ":" in name and not name.startswith(IMAGE_FOLDER)


def parse_augment(text: str) -> tuple[str, ...] | None:
    """Return the names in a text such as "flip,crop"; None for "auto", which leaves the choice to the dataset.

    Raises:
        ConfigError: an unknown name.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if names == ["auto"]:
        return None
    unknown = [name for name in names if name not in AUGMENTATIONS]
    if names == ["none"] or not unknown:
        return () if names == ["none"] else tuple(name for name in AUGMENTATIONS if name in names)
    raise ConfigError(
        f"--augment {text!r} has {unknown[0]!r}; give some of {', '.join(AUGMENTATIONS)}, or auto or none"
    )


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained; the same loop trains the dense net and fine-tunes the narrow ones.

    Attributes:
        task: "classification", or package.module:factory of a task of the user's own, with a loss and a score to
            maximise.
        epochs: fine-tuning epochs of a trial, which its method divides among its steps.
        dense_epochs: epochs of the dense net when no weights are given.
        batch_size: images per step.
        accumulate: parts in which the images of a step pass through the network, for a batch that does not fit into
            memory; their gradients are added up, and BatchNorm sees a part at a time.
        optimizer: "sgd", or "adamw" with decoupled weight decay, which takes a learning rate some ten times smaller;
            methods that act on the steps of SGD (csgd, abfp) refuse it.
        lr: peak learning rate of fine-tuning, for a step of `batch_size` images.
        dense_lr: peak learning rate of the dense net.
        lr_batch_size: number of images of a step for which `lr` and `dense_lr` are meant; both are multiplied by
            batch_size / lr_batch_size (Goyal et al., arXiv 1706.02677). 0 takes them as they are.
        momentum: momentum of SGD; beta1 of AdamW.
        nesterov: whether the momentum of SGD is Nesterov's.
        weight_decay: L2 penalty on the weights of layers; normalisations and biases have none, since it would only
            rescale or bias the network.
        bias_lr_mult: factor of the learning rate of biases, including those of BatchNorm; Caffe takes 2.
        label_smoothing: share of the target that is spread over all classes.
        drop_path: rate at which training leaves out the deepest residual branch, for networks with StochasticDepth
            (torchvision) or DropPath (timm); the rates of the others rise to it with the depth. 0 leaves the network's
            own rates.
        mixup: parameter of the distribution Beta(mixup, mixup) of the share by which two images are mixed; 0 mixes
            none.
        clip_grad_norm: largest norm of the gradients over all weights; larger ones are scaled down to it; 0 sets no
            limit.
        model_ema_decay: share of the moving average of the weights that a step keeps, such as 0.99; the narrow networks
            then have the averaged weights. 0 averages none, nor do methods that act on the weights while they train.
        lr_scheduler: schedule of the learning rate of fine-tuning: "one_cycle", "cosine", "multistep" or "constant".
        milestones: epochs after which the schedule "multistep" multiplies the rate by `lr_gamma`.
        lr_gamma: factor of the rate at a milestone, in (0, 1], for fine-tuning and the dense net alike.
        warmup_epochs: epochs in which the rate rises linearly from 0; "one_cycle" has a warm-up of its own.
        dense_lr_scheduler: schedule of the dense net's learning rate; empty takes the schedule of fine-tuning, with
            `dense_milestones` and `dense_warmup_epochs`.
        dense_milestones: milestones of the dense net's training.
        dense_warmup_epochs: warm-up epochs of the dense net's training.
        distill_weight: weight in [0, 1] of KL(dense || narrow) on the logits; 0 switches distillation off.
        distill_temperature: number by which the logits of both networks are divided in the distillation term.
        rescale_weights: before which trainings of narrow networks trained weights get the norm of fresh ones, where a
            BatchNorm follows: "final" (the last and longest part of the final training), "all" or "none". The network
            stays the same and takes larger steps.
        precision: "auto", "float32", "bfloat16" or "float16", of the autocast in training and validation. "auto" takes
            bfloat16 on GPUs that have it, else float16 on those with tensor cores; on processors with AMX or
            AVX512-BF16 bfloat16, unless the network has depthwise convolutions; float32 everywhere else.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
    """

    task: Annotated[str, Predicate(bool), "classification or package.module:factory"] = CLASSIFICATION
    epochs: NonNegativeInt = 1
    dense_epochs: NonNegativeInt = 3
    batch_size: PositiveInt = 32
    accumulate: PositiveInt = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.008
    dense_lr: PositiveFloat = 0.05
    lr_batch_size: NonNegativeInt = 0
    momentum: BelowOne = 0.9
    nesterov: bool = True
    weight_decay: NonNegativeFloat = 5e-4
    bias_lr_mult: PositiveFloat = 1.0
    label_smoothing: BelowOne = 0.1
    drop_path: BelowOne = 0.0
    mixup: NonNegativeFloat = 0.0
    clip_grad_norm: NonNegativeFloat = 5.0
    model_ema_decay: BelowOne = 0.0
    lr_scheduler: LRScheduler = "one_cycle"
    milestones: tuple[float, ...] = ()
    lr_gamma: Annotated[float, Interval(gt=0, le=1), "in (0, 1]"] = 0.1
    warmup_epochs: NonNegativeFloat = 0.0
    dense_lr_scheduler: Annotated[
        Literal[LRScheduler, ""], "one of one_cycle, cosine, multistep, constant, or empty"
    ] = ""
    dense_milestones: tuple[float, ...] = ()
    dense_warmup_epochs: NonNegativeFloat = 0.0
    distill_weight: Annotated[float, Interval(ge=0, le=1), "in [0, 1]"] = 0.0
    distill_temperature: PositiveFloat = 2.0
    rescale_weights: Literal["final", "all", "none"] = "final"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        """Check the settings and whether schedule, milestones and warm-up of fine-tuning fit together.

        Raises:
            ConfigError: the first rule that does not hold.
        """
        check_settings(self)
        if self.accumulate > 1 and (self.batch_size % self.accumulate or self.batch_size < 2 * self.accumulate):
            raise ConfigError(
                f"--accumulate is {self.accumulate} and --batch-size {self.batch_size}, which must be a multiple of it "
                "that leaves at least 2 images for a part, as BatchNorm needs"
            )
        if self.lr_scheduler == "multistep" and not self.milestones:
            raise ConfigError(
                "--lr-scheduler is 'multistep' without --milestones; name the epochs at which the rate falls, or take "
                "'constant'"
            )
        if list(self.milestones) != sorted({epoch for epoch in self.milestones if epoch > 0}):
            raise ConfigError(f"--milestones are {self.milestones} and must be epochs above 0 in rising order")
        if self.lr_scheduler == "one_cycle" and self.warmup_epochs:
            raise ConfigError(
                f"--warmup-epochs is {self.warmup_epochs}, and --lr-scheduler 'one_cycle' has a warm-up of its own; "
                "take 0"
            )

    def scaled_to_batch(self) -> "TrainConfig":
        """Return the training with the learning rates of its batch size, to which they are not scaled again."""
        if not self.lr_batch_size:
            return self
        factor = self.batch_size / self.lr_batch_size
        return dataclasses.replace(self, lr=factor * self.lr, dense_lr=factor * self.dense_lr, lr_batch_size=0)

    def for_dense(self) -> "TrainConfig":
        """Return the training of the dense net: its own epochs, rate and schedule, no averaged weights, else the same.

        Raises:
            ConfigError: schedule, milestones and warm-up of the dense net do not fit together.
        """
        try:
            scaled = self.scaled_to_batch()
            return dataclasses.replace(
                scaled,
                epochs=self.dense_epochs,
                lr=scaled.dense_lr,
                lr_scheduler=self.dense_lr_scheduler or self.lr_scheduler,
                milestones=self.dense_milestones,
                warmup_epochs=self.dense_warmup_epochs,
                model_ema_decay=0.0,
            )
        except ConfigError as error:
            raise ConfigError(f"dense net: {error}") from error


@dataclass(frozen=True)
class RunnerConfig:
    """Where trials run.

    Attributes:
        name: "auto" (ray when more than one worker fits, else local), "ray" or "local".
        cpus_per_trial: CPU cores, and so threads, of one trial.
        gpus_per_trial: share of one GPU that a trial takes, as 0.5 lets two trials share it; 0 takes a whole one where
            training uses CUDA. A trial trains on one GPU; several GPUs train several trials at once.
        ray_address: address of the head of a running cluster as host:port, "auto" to find one on this machine; empty
            takes RAY_ADDRESS, and without that, or by "local", Ray is started here.
        max_retries: how often a trial is tried again whose worker or node was lost, on another node where there is one,
            from the last state that it has saved; a trial that fails for a reason of its own is not tried again.
        trial_timeout: longest time that a trial on Ray may go without a report or a saved state, such as 30m; then its
            worker is ended, and the trial is tried once more. "auto" takes ten times the forecast of a whole trial, at
            least ten minutes; "none" waits for ever.
    """

    name: Annotated[str, Flag("runner")] = "auto"
    cpus_per_trial: PositiveInt = 1
    gpus_per_trial: Annotated[
        float,
        Predicate(lambda count: count == 0 or 0.01 <= count <= 1),
        "0, or a share of one GPU from 0.01 to 1: a trial trains on one, and more GPUs train more trials at once",
    ] = 0.0
    ray_address: str = ""
    max_retries: NonNegativeInt = 2
    trial_timeout: str = "auto"

    def __post_init__(self) -> None:
        """Check the settings; raises ConfigError."""
        check_settings(self)

    @property
    def cluster(self) -> str:
        """Address of the running cluster that trials run on; empty where Ray is started here."""
        address = self.ray_address or os.environ.get("RAY_ADDRESS", "")
        return "" if address == "local" else address  # Ray's word for a new one


@dataclass(frozen=True)
class LatencyConfig:
    """How the latency of networks is measured, beside that of the dense one.

    The networks of the front are timed at the end of a search. Under a latency budget, or with latency as an axis,
    networks are timed during the search too, at the first batch size.

    Attributes:
        device: "cpu:1thread", "cpu:2threads", "cuda:0" or "mps"; "auto" is the device of the training
            ("cpu:1thread" for a processor), "none" measures nothing. http://HOST:PORT is an agent on a board
            (runners/latency/agent.py); several of one kind, given by repeating the flag, share the networks.
        batch: numbers of images of one inference, as in 1,8; a latency budget is for the first number.
        dtype: "float32", "bfloat16" or "float16", for weights and images.
        channels_last: whether weights and images are in the channels_last memory format.
        engine: "eager", "torch.compile" or "onnxruntime" (where it is installed).
        command: command that measures the file {model} on any device with any runtime, such as
            "python bench.py {model}", and prints milliseconds: one number a line, one line per run, or JSON such as
            {"ms": [3.1, 3.2], "mj": 12}. {batch} and {shape} (as in 1x3x32x32) are put in too. Empty measures here.
        format: file format of the networks that the command gets.
        shell: whether the command is run by a shell, for pipes and &&; what is put in is quoted either way.
        timeout: seconds that one call of the command, or one measurement of an agent, may take.
        token_file: file with the token of the agents.
    """

    device: Annotated[str, Flag("latency-device", joined=True)] = AUTO_DEVICE
    batch: Annotated[
        tuple[int, ...],
        Flag("latency-batch"),
        Predicate(lambda sizes: bool(sizes) and min(sizes) >= 1 and max(sizes) <= MOST),
        f"numbers of images from 1 to {MOST}, as in 1,8",
    ] = (1,)
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Flag("latency-dtype")] = "float32"
    channels_last: Annotated[bool, Flag("latency-channels-last")] = False
    engine: Annotated[Literal["eager", "torch.compile", "onnxruntime"], Flag("latency-engine")] = "eager"
    command: Annotated[str, Flag("latency-command")] = ""
    format: Annotated[Literal["onnx", "pt2", "torchscript", "safetensors", "state_dict"], Flag("latency-format")] = (
        "onnx"
    )
    shell: Annotated[bool, Flag("latency-shell")] = False
    timeout: Annotated[PositiveFloat, Flag("latency-timeout")] = 120.0
    token_file: Annotated[str, Flag("latency-token-file")] = ""

    def __post_init__(self) -> None:
        """Check the settings, and that those of a command or of agents go with no others.

        Raises:
            ConfigError: the first rule that does not hold.
        """
        check_settings(self)
        if self.command:
            self._check_command()
        if len(self.agents) not in (0, len(self.device.split(","))):
            raise ConfigError(f"--latency-device {self.device!r} mixes agents with other devices; name agents alone")
        elsewhere = "--latency-command" if self.command else "an agent"
        if self.external and (self.dtype, self.channels_last, self.engine) != ("float32", False, "eager"):
            raise ConfigError(
                f"{elsewhere} measures a float32 file with a runtime of its own; leave out --latency-dtype, "
                "--latency-channels-last and --latency-engine"
            )
        if self.agents and self.format != "onnx":
            raise ConfigError(f"--latency-format is {self.format!r}, and an agent runs onnx; leave it out")

    def _check_command(self) -> None:
        if self.device != AUTO_DEVICE:
            raise ConfigError(
                f"--latency-command measures where it runs, and --latency-device is {self.device!r}; keep one of them"
            )
        if "{model}" not in self.command:
            raise ConfigError(
                f"--latency-command {self.command!r} has no {{model}}, in whose place the file of a network is put"
            )
        try:
            shlex.split(self.command)
        except ValueError as error:
            raise ConfigError(f"--latency-command {self.command!r} is not quoted well: {error}") from error

    @property
    def measures(self) -> bool:
        """Whether anything is timed; run folders of earlier versions say no by an empty text."""
        return self.device not in ("", NO_DEVICE)

    @property
    def agents(self) -> tuple[str, ...]:
        """Addresses of the agents that measure; empty where none does."""
        return tuple(part for part in self.device.split(",") if part.startswith(("http://", "https://")))

    @property
    def on_onnxruntime(self) -> bool:
        """Whether ONNX Runtime measures, here or on a board with an agent."""
        return self.engine == "onnxruntime" or bool(self.agents)

    @property
    def external(self) -> bool:
        """Whether a command or agents measure, and not this process."""
        return bool(self.command or self.agents)

    @property
    def place(self) -> str:
        """Where latency is measured, in words."""
        return f"the device of {self.command!r}" if self.command else self.device
