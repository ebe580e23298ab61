"""What a pruning method is, and what it may ask of the code that runs it.

A method is a frozen dataclass whose fields are its settings, declared as `pruning.settings` says.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from spaces.budget import Budget
from spaces.cost import Cost
from spaces.errors import SlimfrontError
from spaces.registry import Registry, unknown_name
from spaces.space import SearchSpace
from spaces.widths import Widths

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

METHODS = Registry(
    "method",
    {
        "abfp": "pruning.methods.abfp.method:AutoBalanced",
        "aofp": "pruning.methods.aofp.method:ApproximatedOracle",
        "bn_scale": "pruning.methods.score_and_slice:SlimmingScales",
        "csgd": "pruning.methods.csgd.method:CentripetalSGD",
        "di": "pruning.methods.di.method:DiscriminantInformation",
        "feature_rank": "pruning.methods.score_and_slice:RankedMaps",
        "geometric_median": "pruning.methods.score_and_slice:MedianFilters",
        "l1": "pruning.methods.score_and_slice:UniformL1",
        "kse": "pruning.methods.kse.method:KernelSparsityEntropy",
        "l2": "pruning.methods.score_and_slice:UniformL2",
        "random": "pruning.methods.score_and_slice:RandomChannels",
        "scratch": "pruning.methods.scratch:FromScratch",
        "taylor": "pruning.methods.score_and_slice:TaylorGates",
    },
)
CRITERIA = Registry(
    "criterion",
    {
        "bn_scale": "pruning.criteria.bn_scale:BatchNormScale",
        "feature_rank": "pruning.criteria.feature_rank:FeatureRank",
        "geometric_median": "pruning.criteria.geometric_median:GeometricMedian",
        "l1": "pruning.criteria.norms:L1",
        "l2": "pruning.criteria.norms:L2",
        "random": "pruning.criteria.random:Random",
        "discriminant": "pruning.criteria.discriminant.criterion:Discriminant",
        "taylor": "pruning.criteria.taylor:Taylor",
    },
)

# Layers that a method puts in place of plain ones: kind -> class, which a checkpoint rebuilds them by.
LAYERS = Registry(
    "layer",
    {
        "quantized_conv2d": "pruning.quantization.layers:QuantizedConv2d",
        "quantized_linear": "pruning.quantization.layers:QuantizedLinear",
        "shared_kernels": "pruning.methods.kse.kernel_sharing:SharedKernelConv2d",
    },
)


class PruningError(SlimfrontError):
    """A pruning method that cannot do what is asked of it on this network."""


@dataclass(frozen=True)
class Goal:
    """What a method must reach: widths that the search chose, or budgets within which the method chooses them."""

    widths: Widths | None = None
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """A physically narrow network that a method has produced, after `epoch` epochs of the trial's training.

    `note` holds plain numbers and words the method wants reported (never tensors). `cost` is what the net costs where
    its layers are not plain ones and the widths alone do not say it. A net that is not yet within the goal is a point
    of its own on the way there: whoever measures it re-estimates its BatchNorm, so a method need not.
    """

    net: "nn.Module"
    widths: Widths
    epoch: int
    note: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    cost: Cost | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """What a training will be like, known before it starts.

    Attributes:
        rates: learning rate of every step.
        momentum: of SGD.
        nesterov: whether it looks ahead.
        weight_decay: L2 penalty of tensors with more than one dimension; the others have none.
        bias_lr_mult: what the rates of biases, those of BatchNorm too, are multiplied by.
    """

    rates: tuple[float, ...]
    momentum: float
    nesterov: bool
    weight_decay: float
    bias_lr_mult: float = 1.0


@dataclass(frozen=True)
class Distillation:
    """A net whose logits training shall meet besides the labels.

    Attributes:
        teacher: on the context's device; not changed.
        weight: in [0, 1], of KL(teacher || net) on softmax outputs, a mean over images; the labels' loss has the rest.
        temperature: softens both.
    """

    teacher: "nn.Module"
    weight: float
    temperature: float = 1.0


# Net and momentum by parameter name -> those to go on with; None goes on as before.
Reshape = Callable[["nn.Module", Mapping[str, "Tensor"]], "tuple[nn.Module, Mapping[str, Tensor]] | None"]


class Context(Protocol):
    """What whoever runs a method lends it: data, training, evaluation. Test and validation images stay out of reach."""

    seed: int
    epochs: int
    steps_per_epoch: int
    device: "torch.device"
    learning_rate: float  # the peak of `fit`
    dense_learning_rate: float  # the peak of the dense network's training
    statistics: Any  # what this method's `prepare` returned for the dense network; None when it has none

    def calibration_batches(self, images: int) -> "Iterator[tuple[Tensor, Tensor]]":
        """Yield up to `images` training images without augmentation, always the same ones, class-mixed.

        Batches are (images of shape (B, C, H, W), labels of shape (B,)) on `device`.
        """
        ...

    def probe_accuracy(self, net: "nn.Module", images: int) -> float:
        """Return top-1 accuracy in [0, 1] on up to `images` training images (never validation or test)."""
        ...

    def reestimate_batchnorm(self, net: "nn.Module") -> None:
        """Replace the running statistics of every BatchNorm of `net`, in place, by those of training batches."""
        ...

    def plan(self, epochs: int) -> TrainingPlan:
        """Return what `fit` will do with so many epochs."""
        ...

    def fit(
        self,
        net: "nn.Module",
        epochs: float,
        hook: "StepHook | None" = None,
        *,
        reshape: Reshape | None = None,
        span: tuple[float, float] = (0.0, 1.0),
        learning_rate: float | None = None,
        peak: float | None = None,
        distillation: Distillation | None = None,
    ) -> Iterator[int]:
        """Train `net` in place; yield the number of epochs after each one, the last of which may be a part of one.

        Args:
            hook: called as hook(net, step) before every step of the optimiser.
            reshape: asked after every epoch, before it is yielded, whether training goes on with another net.
            span: the part of the learning-rate schedule to go through.
            learning_rate: constant; None follows the trial's own schedule.
            peak: of that schedule; None takes the trial's own.
            distillation: in place of what the trial's own settings say; None follows them.
        """
        ...

    def latency_ratio(self, net: "nn.Module", dense: "nn.Module") -> float:
        """Return the ratio of two latencies, `net` over `dense`, of one image in evaluation mode.

        Both are measured on `device`, where both nets must be; the modes of their modules are restored.
        """
        ...

    def integrated_learning_rate(self, epochs: float, span: tuple[float, float] = (0.0, 1.0)) -> float:
        """Return how far a weight would move in a `fit` of `epochs` under a constant gradient of 1, momentum included.

        A term that adds a gradient g * w to every step multiplies w by about exp(-g * travel).
        """
        ...


# Called after the gradients are final (unscaled, clipped, reduced) and before the optimiser's step.
StepHook = Callable[["nn.Module", int], None]


class Method(Protocol):
    """A way from a wide network to narrow ones. Implementations are frozen dataclasses of their settings."""

    name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[str]  # what it works from, besides net, widths and budgets; words for a reader
    finds_widths: ClassVar[bool]  # whether it can work from budgets alone
    takes_widths: ClassVar[bool]  # whether it can work at given widths; one of both is true

    def prepare(self, net: "nn.Module", space: SearchSpace, context: Context) -> Any:
        """Compute, once per search, what every trial of this method can share; picklable, or None."""
        return None

    def run(self, net: "nn.Module", space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield narrow networks; `net` itself is never changed.

        The last one is the result and meets the goal; those before it that do not are points on the way.
        """
        ...


class StructuredLayer(Protocol):
    """A layer of a kind of its own in a narrow network, an `nn.Module` in place of a plain one.

    One that derives anything from its tensors may have `follow_tensors()`, called once they were replaced.
    """

    kind: ClassVar[str]  # its name in LAYERS

    def structure(self) -> Mapping[str, Any]:
        """Return, as plain JSON data, what is needed besides its tensors to build it again."""
        ...

    @classmethod
    def rebuild(cls, plain: "nn.Module", structure: Mapping[str, Any]) -> "nn.Module":
        """Return a layer with tensors of the stored names and dimensions, whose values are then replaced.

        Args:
            plain: the layer of the dense network in its place, possibly on the meta device.
            structure: what `structure` gave.
        """
        ...


class Criterion(Protocol):
    """Scores the channels of every group; higher is kept."""

    seeded: ClassVar[bool]  # whether scores depend on the trial's seed; otherwise all trials share those of one net

    def scores(self, net: "nn.Module", space: SearchSpace, context: Context) -> "Mapping[str, Tensor]":
        """Return group name -> scores of shape (group.width,), float, finite, at least 0."""
        ...


# What a user may write for several methods. `auto`: those that make the front of a first search, cheap enough for it.
BUNDLES = {"auto": ("di", "aofp", "csgd")}
EVERY = "all"


def parse_methods(text: str) -> Sequence[str]:
    """Split "di,l2" into known method names, each once; "auto" stands for a few, "all" for the whole table.

    Raises:
        UnknownNameError: a name that is in no table.
    """
    names: dict[str, None] = {}
    for name in (each.strip() for each in text.split(",")):
        if name == EVERY:
            names |= dict.fromkeys(sorted(METHODS))
        elif name in BUNDLES:
            names |= dict.fromkeys(BUNDLES[name])
        elif name in METHODS:
            names[name] = None
        elif name:
            raise unknown_name("method", name, sorted([*METHODS, *BUNDLES, EVERY]))
    return list(names)
