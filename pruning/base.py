"""Protocols of pruning: methods, criteria, the context that runs a method, and the tables of their names.

A method is a frozen dataclass whose fields are its settings, declared as in `pruning.settings`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from spaces.budget import Budget
from spaces.cost import Cost
from spaces.errors import SlimfrontError
from spaces.registry import OpenRegistry, Registry, unknown_name
from spaces.space import SearchSpace
from spaces.widths import Widths

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

METHODS = OpenRegistry(
    "method",
    {
        "abfp": "pruning.methods.abfp.method:AutoBalanced",
        "aofp": "pruning.methods.aofp.method:ApproximatedOracle",
        "bn_scale": "pruning.methods.score_and_slice:SlimmingScales",
        "chip": "pruning.methods.chip:Chip",
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
    needs=("run", "prepare", "paper", "needs", "finds_widths", "takes_widths"),
    base="pruning.Method, as pruning.methods.score_and_slice.ScoreAndSlice does",
)
CRITERIA = OpenRegistry(
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
    needs=("scores", "seeded"),
    base="pruning.Criterion",
)

# Layers by which a method replaces plain ones: kind -> class. Checkpoints rebuild such layers by their kind.
LAYERS = Registry(
    "layer",
    {
        "quantized_conv2d": "pruning.quantization.layers:QuantizedConv2d",
        "quantized_linear": "pruning.quantization.layers:QuantizedLinear",
        "shared_kernels": "pruning.methods.kse.kernel_sharing:SharedKernelConv2d",
    },
)


class PruningError(SlimfrontError):
    """A pruning method or criterion cannot be applied to this network as it was asked to."""


@dataclass(frozen=True)
class Goal:
    """The target of a method: widths that the search chose, or budgets within which the method chooses widths."""

    widths: Widths | None = None
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """A physically narrow network that a method yields.

    A network that does not meet the goal yet is an intermediate network, a result of its own. The code that evaluates
    a snapshot re-estimates its BatchNorm statistics, so a method need not.

    Attributes:
        net: the network.
        widths: its width per variable group.
        epoch: number of epochs of the trial's training so far.
        note: numbers and words to report, never tensors.
        cost: cost of a network whose layers are not plain; None where the widths determine the cost.
        selection: group name -> channels of the wide net that the method kept, as indices; None where it did more than
            keep some in one cut.
    """

    net: "nn.Module"
    widths: Widths
    epoch: int
    note: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    cost: Cost | None = None
    selection: "Mapping[str, Tensor] | None" = None


@dataclass(frozen=True)
class TrainingPlan:
    """The hyper-parameters of a training by SGD, known before it starts.

    Attributes:
        rates: learning rate of every step.
        momentum: momentum of SGD.
        nesterov: whether the momentum is Nesterov's.
        weight_decay: L2 penalty of tensors with more than one dimension; other tensors have none.
        bias_lr_mult: factor of the learning rate of biases, including those of BatchNorm.
    """

    rates: tuple[float, ...]
    momentum: float
    nesterov: bool
    weight_decay: float
    bias_lr_mult: float = 1.0


@dataclass(frozen=True)
class Distillation:
    """Knowledge distillation: the loss has a term that pulls the net's outputs to those of a teacher.

    Attributes:
        teacher: network on the context's device; not changed.
        weight: weight, in [0, 1], of KL(teacher || net) of softmax outputs, averaged over images; the loss on labels
            has the weight 1 - `weight`.
        temperature: divides the logits of both networks.
    """

    teacher: "nn.Module"
    weight: float
    temperature: float = 1.0


# Called as reshape(net, momentum by parameter name). Returns the net and momentum with which training continues, or
# None to continue with the same net.
Reshape = Callable[["nn.Module", Mapping[str, "Tensor"]], "tuple[nn.Module, Mapping[str, Tensor]] | None"]


class TrainingState(Protocol):
    """State, beside the weights, of what acts on them in a training, for another process that goes on with it."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> "nn.Module | None":
        """Restore a state that `state_dict` returned; the weights of then are loaded afterwards.

        Returns:
            The network that was trained then, if `reshape` had exchanged it.
        """
        ...


class Stateless(TrainingState):
    """No state beside the weights."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing."""


# Called as hook(net, step) once gradients are final (unscaled, clipped, reduced), before the optimiser's step.
StepHook = Callable[["nn.Module", int], None]


@dataclass(frozen=True)
class Action:
    """What a method does to the weights in a training; nothing by default.

    Attributes:
        hook: called before every step of the optimiser.
        reshape: called after every epoch, before the epoch is yielded; may replace the network that is trained.
        state: of `hook` and `reshape`. With it a trial whose worker is lost goes on where its state was saved: its
            method runs again, and each `fit` that had ended gives its network the weights of its end at once and yields
            its last epoch alone. None begins such a trial anew.
    """

    hook: StepHook | None = None
    reshape: Reshape | None = None
    state: TrainingState | None = None

    @property
    def resumable(self) -> bool:
        """Whether another process can go on with the training."""
        return self.state is not None or not self

    def __bool__(self) -> bool:
        """Return whether the method acts on the weights."""
        return self.hook is not None or self.reshape is not None


NO_ACTION = Action()


@dataclass(frozen=True)
class Rates:
    """The learning rates of a training, where they are not those of the whole schedule of the trial.

    Attributes:
        span: start and end of the part of the schedule that is followed, as fractions of it.
        peak: of the schedule; None takes the trial's.
        constant: rate of every step in place of the schedule; None follows the schedule.
    """

    span: tuple[float, float] = (0.0, 1.0)
    peak: float | None = None
    constant: float | None = None


TRIAL_RATES = Rates()


class Context(Protocol):
    """Data, training and evaluation for a method, without access to test and validation images."""

    seed: int
    epochs: int
    steps_per_epoch: int
    device: "torch.device"
    learning_rate: float  # peak of the schedule of `fit`
    dense_learning_rate: float  # peak of the schedule of the dense network's training
    prepared: Any  # what the method's `prepare` has returned for the dense network; None before its first call
    classifies: bool  # whether targets are class numbers and outputs logits; else they are those of a user's task

    def calibration_batches(self, images: int) -> "Iterator[tuple[Tensor, Tensor]]":
        """Yield up to `images` training images without augmentation, always the same images, with classes mixed.

        Batches are (images of shape (B, C, H, W), targets of shape (B, ...)) on `device`; targets of a classification
        are labels of shape (B,).
        """
        ...

    def probe_accuracy(self, net: "nn.Module", images: int) -> float:
        """Return the score, such as accuracy, in [0, 1] on up to `images` probe images: training images."""
        ...

    def loss(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        """Return the mean loss of a batch by which networks are trained, without label smoothing."""
        ...

    def reestimate_batchnorm(self, net: "nn.Module") -> None:
        """Replace the running statistics of every BatchNorm of `net` in place by statistics of training batches."""
        ...

    def plan(self, epochs: int) -> TrainingPlan:
        """Return the training that `fit` does in `epochs` epochs."""
        ...

    def fit(
        self,
        net: "nn.Module",
        epochs: float,
        action: Action = NO_ACTION,
        *,
        rates: Rates = TRIAL_RATES,
        distillation: Distillation | None = None,
    ) -> Iterator[int]:
        """Train `net` in place; yield the number of epochs trained after each one. The last epoch may be a partial one.

        Args:
            action: what the method does to the weights meanwhile.
            rates: learning rates.
            distillation: replaces the distillation of the trial's training settings; None follows these.
        """
        ...

    def latency_ratio(self, net: "nn.Module", dense: "nn.Module") -> float:
        """Return the ratio of two latencies, `net` over `dense`, of one image in evaluation mode.

        Both are measured on `device`, where both nets must be, and stay as they are. Layers of `net` that have several
        forms take their fastest ones for it.
        """
        ...

    def integrated_learning_rate(self, epochs: float, span: tuple[float, float] = (0.0, 1.0)) -> float:
        """Return the sum of the step learning rates of a `fit` of `epochs`, divided by (1 - momentum).

        A term that adds a gradient g * w to every step multiplies w by about exp(-g * integrated learning rate).
        """
        ...


class Method(Protocol):
    """Turns a wide network into narrow ones. Implementations are frozen dataclasses of their settings."""

    name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[str]  # what the method needs besides net, widths and budgets, in words for a reader
    finds_widths: ClassVar[bool]  # whether the method can choose widths within budgets
    takes_widths: ClassVar[bool]  # whether the method can reach given widths; at least one of the two is true

    def prepare(self, net: "nn.Module", space: SearchSpace, context: Context) -> Any:  # noqa: ARG002 (few use all)
        """Compute what all trials of the method share; picklable, or None.

        It is called once per search, with the settings that are fixed, and for every screening pool with the settings
        of its candidates: what `context.prepared` holds already is not computed again.
        """
        return None

    def run(self, net: "nn.Module", space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield narrow networks; `net` itself is never changed.

        The last network is the result and meets the goal; earlier ones that do not are intermediate networks.
        """
        ...


class StructuredLayer(Protocol):
    """A layer that is an `nn.Module` of a class in `LAYERS`, in place of a plain layer of a narrow network.

    A layer that derives anything from its tensors has a method `follow_tensors()`, called after they were replaced.
    """

    kind: ClassVar[str]  # name of the class in LAYERS

    def structure(self) -> Mapping[str, Any]:
        """Return, as plain JSON data, what `rebuild` needs besides the layer's tensors."""
        ...

    @classmethod
    def rebuild(cls, plain: "nn.Module", structure: Mapping[str, Any]) -> "nn.Module":
        """Return a layer with tensors of the stored names and numbers of dimensions, whose values are then replaced.

        Args:
            plain: the layer of the dense network at the same place, possibly on the meta device.
            structure: the data that `structure` returned.
        """
        ...


@runtime_checkable
class LayerWithForms(Protocol):
    """A structured layer that computes the same in several forms in evaluation; which is fastest depends on the device.

    Attributes:
        form: the form it computes in, one of `forms`; None for the first, until the forms were timed.
        counting: while it is true the layer computes in the form whose cost its method states (`spaces.counting`).
    """

    form: str | None
    counting: bool

    def forms(self) -> Sequence[str]:
        """Return the forms that this layer has."""
        ...

    def inference_module(self, form: str) -> "nn.Module":
        """Return a module that computes what this layer computes in evaluation, up to the rounding of sums."""
        ...


class Criterion(Protocol):
    """Scores the channels of every group; channels with higher scores are kept."""

    seeded: ClassVar[bool]  # whether scores depend on the trial's seed; if not, all trials of a net share its scores

    def scores(self, net: "nn.Module", space: SearchSpace, context: Context) -> "Mapping[str, Tensor]":
        """Return group name -> scores of shape (group.width,), float, finite, at least 0."""
        ...


# Names that stand for several methods. `auto` holds the methods that are cheap enough for a first search and make up
# its front.
BUNDLES = {"auto": ("di", "aofp", "csgd")}
EVERY = "all"


def parse_methods(text: str) -> Sequence[str]:
    """Split text such as "di,l2" into method names without repetition; names in `BUNDLES` and "all" are expanded.

    A method of the user's own is named "package.module:Class".

    Raises:
        UnknownNameError: a name that stands for no method, or a class of the user's that is no method.
    """
    names: dict[str, None] = {}
    for name in (part.strip() for part in text.split(",")):
        if name == EVERY:
            names |= dict.fromkeys(sorted(METHODS))
        elif name in BUNDLES:
            names |= dict.fromkeys(BUNDLES[name])
        elif name in METHODS:
            if ":" in name:
                METHODS[name]  # raises for a class of the user's that is no method
            names[name] = None
        elif name:
            raise unknown_name("method", name, sorted([*METHODS, *BUNDLES, EVERY]))
    return list(names)
