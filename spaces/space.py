"""SearchSpace: the channel groups of a network that may vary, their bounds, and the cost of every choice."""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, lcm
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from spaces.budget import Budget
from spaces.cost import Cost, CostModel
from spaces.errors import ConfigError, SpaceError
from spaces.fields import MOST, check_settings, parse_float
from spaces.groups import ChannelGroup
from spaces.projection import Projection
from spaces.widths import Widths

WIDE = 128  # from this width up the default divisor is 8: vector units work on multiples of 8 channels
WIDE_DIVISOR = 8
FEWEST_WIDTHS = 4  # that the default divisor leaves; channels in many equal groups then take the number of these groups


@dataclass(frozen=True)
class ModelSpec:
    """What builds a network at full width: a zoo name or "package.module:factory", and its arguments."""

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]  # channels, height, width of one image
    output: str = ""  # name or index of the output of a network that gives several; empty takes the first tensor
    widen: float = 1.0  # factor of all widths, rounded, but those of the image and the output


@dataclass(frozen=True)
class SpaceConfig:
    """How the space is bounded.

    Attributes:
        divisor: widths are multiples of it, and of the number of equal groups into which convolutions split them; 0
            takes 1 for groups under 128 channels and 8 from there up, where that leaves four widths at least. Under a
            latency budget on ONNX Runtime 0 takes 4 for groups of 17 to 127 channels.
        floor: no group falls under this share of its dense width, rounded up to the divisor.
        skip: name patterns of layers that keep their dense width, e.g. "layer4.*".
        only: when given, only layers that match one of these patterns vary.
        bound: "PATTERN=LOW:HIGH", shares of the dense width between which matching layers stay.
    """

    divisor: Annotated[int, Interval(ge=0, le=MOST), f"a whole number from 1 to {MOST}, or 0 for the default"] = 0
    floor: Annotated[float, Interval(gt=0, le=1), "a share of the dense width in (0, 1]"] = 0.1
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the settings, the bounds too; raises ConfigError."""
        check_settings(self)
        _ = self.bounds

    @cached_property
    def bounds(self) -> tuple[tuple[str, float, float], ...]:
        """Of every `bound`: the name pattern, the lowest and the highest share of the dense width."""
        return tuple(_parse_bound(text) for text in self.bound)


@dataclass(frozen=True)
class FixedLayer:
    """A layer whose output channels cannot vary, and why."""

    name: str
    width: int
    reason: str


@dataclass(frozen=True)
class LayerWeights:
    """The parameters of a layer: a module, or a parameter that is given to a function of torch such as `conv2d`.

    Attributes:
        weight: name of the parameter that holds its filters.
        bias: name of the parameter that is its bias; empty for none.
        transposed: whether the weight holds (inputs, outputs, ...), as that of a transposed convolution.
        computed: whether the function takes a tensor that is computed from the weight, such as a standardised one.
        depthwise: whether every filter reads one channel, as in a convolution of as many groups as channels.
        stride: product of the strides of a transposed convolution: one in so many kernel positions reaches an output.
    """

    weight: str
    bias: str = ""
    transposed: bool = False
    computed: bool = False
    depthwise: bool = False
    stride: int = 1


# Tensor name -> dimension -> channel id at every index along it (-1: never cut). ChannelGroup.start explains the ids.
# The dimensions of a weight are those of its filters (`spaces.slicing.filters`): 0 outputs, 1 inputs.
AxisMaps = Mapping[str, Mapping[int, NDArray[np.int64]]]


class SizeName(NamedTuple):
    """Where a size stands: an attribute of a module, or one number of a list or tuple in it."""

    module: str
    attribute: str
    place: int | None = None


@dataclass(frozen=True)
class SearchSpace:
    """The widths that a network may take, and their cost.

    Attributes:
        groups: all groups of the network, the fixed ones too; `variable` lists the others.
        layers_fixed: layers that belong to no group, with the reason.
        cost_model: cost as a function of the widths of the variable groups, in their order.
        axes: the positions of each group's channels in each parameter and buffer.
        spec: builds the dense network again; None for a network that was given as a live module.
        grouped: weight name -> `groups` of that convolution, for convolutions that are neither plain nor depthwise.
        sizes: numbers of channels that modules hold in attributes, with the channel ids that they count.
        output: which output is taken of a network that gives several; empty for one that gives a single tensor.
        layers: layer, as groups name their producers and consumers -> its parameters, in the order of these.
    """

    groups: tuple[ChannelGroup, ...]
    layers_fixed: tuple[FixedLayer, ...]
    cost_model: CostModel
    axes: AxisMaps
    input_shape: tuple[int, int, int]
    spec: ModelSpec | None = None
    grouped: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[SizeName, NDArray[np.int64]] = field(default_factory=dict)
    output: str = ""
    layers: Mapping[str, LayerWeights] = field(default_factory=dict)

    @cached_property
    def transposed(self) -> frozenset[str]:
        """Names of the weights that hold their inputs first."""
        return frozenset(layer.weight for layer in self.layers.values() if layer.transposed)

    @cached_property
    def variable(self) -> tuple[ChannelGroup, ...]:
        """The groups whose width may vary, in the order of all width ratios and width vectors."""
        return tuple(group for group in self.groups if not group.fixed)

    @cached_property
    def by_name(self) -> Mapping[str, ChannelGroup]:
        """Group name -> group."""
        return {group.name: group for group in self.groups}

    @cached_property
    def full(self) -> Widths:
        """The dense widths."""
        return Widths({group.name: group.width for group in self.variable})

    @cached_property
    def largest(self) -> Widths:
        """The largest legal widths: the dense ones, unless bounds say otherwise."""
        return Widths({group.name: group.ceiling for group in self.variable})

    @cached_property
    def smallest(self) -> Widths:
        """The smallest legal widths."""
        return Widths({group.name: group.lowest for group in self.variable})

    @cached_property
    def dense_cost(self) -> Cost:
        """The cost of the dense network."""
        return self.cost_model(self.full)

    @cached_property
    def smallest_cost(self) -> Cost:
        """The cost of the smallest legal network; no budget under it can be met."""
        return self.cost_model(self.smallest)

    def cost(self, widths: Mapping[str, int]) -> Cost:
        """Return the exact cost of a candidate, as counted on the sliced network; the size of a file is a bound."""
        return self.cost_model(widths)

    def check(self, widths: Mapping[str, int]) -> None:
        """Raise unless every width is legal.

        Raises:
            SpaceError: a name is no variable group, or a width is not legal in its group.
        """
        names = {group.name for group in self.variable}
        for name, width in widths.items():
            if name not in names:
                raise SpaceError(f"{name!r} is no variable group of this network; known: {', '.join(sorted(names))}")
            group = self.by_name[name]
            if not group.legal(width):
                raise SpaceError(
                    f"width {width} of {name!r} is not legal; multiples of {group.divisor} from {group.lowest} "
                    f"to {group.ceiling} are"
                )

    def fit(self, width_ratios: Sequence[float], budgets: Sequence[Budget]) -> Widths:
        """Project width ratios onto legal widths that meet the budgets.

        The widths are the largest multiple of `width_ratios * dense widths` that meets every budget on a counted
        cost; budgets on latency are ignored, because the cost model does not predict it. The widths are then
        filled up one divisor step at a time, so that at least 97% of the tightest budget is used whenever the
        granularity of the space allows it.

        Args:
            width_ratios: a number in [0, 1] per variable group; only their proportions matter.
            budgets: absolute budgets (see `Budget.resolve`).

        Raises:
            BudgetError: the smallest network of the space does not meet a budget; the message gives its cost.
            SpaceError: the width ratios have the wrong length or leave [0, 1].
        """
        return self._projection.fit(np.asarray(width_ratios, dtype=np.float64), budgets)

    @cached_property
    def _projection(self) -> Projection:
        return Projection(self.variable, self.cost_model)

    def with_file(self, overhead: int) -> "SearchSpace":
        """Return the space whose costs have the size of a file with this many bytes beside those of the tensors."""
        return dataclasses.replace(self, cost_model=self.cost_model.with_file(overhead))

    def restrict(self, config: SpaceConfig, alignment: int = 1) -> "SearchSpace":
        """Return the space with the divisors, floors, bounds and fixed groups of a config.

        Args:
            alignment: the default divisor of groups under 128 channels that keep more than four widths by it.

        Raises:
            SpaceError: a pattern that matches no layer.
        """
        _check_patterns(config, self.groups)
        groups = tuple(_restrict_group(group, config, alignment) for group in self.groups)
        newly_fixed = {
            new.name: new.width for old, new in zip(self.groups, groups, strict=True) if new.fixed and not old.fixed
        }
        return dataclasses.replace(self, groups=groups, cost_model=self.cost_model.fix(newly_fixed))


def _matches(group: ChannelGroup, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in group.producers)


def _parse_bound(text: str) -> tuple[str, float, float]:
    pattern, _, span = text.rpartition("=")
    low, _, high = span.partition(":")
    try:
        bounds = parse_float(low), parse_float(high)
    except ValueError:
        bounds = (0.0, 0.0)
    if not pattern or not 0 < bounds[0] <= bounds[1] <= 1:
        raise ConfigError(
            f"bound {text!r} is not PATTERN=LOW:HIGH with 0 < LOW <= HIGH <= 1, as in 'layer3.*=0.25:0.75'"
        )
    return pattern, *bounds


def _check_patterns(config: SpaceConfig, groups: Sequence[ChannelGroup]) -> None:
    for pattern in [*config.skip, *config.only, *[pattern for pattern, _, _ in config.bounds]]:
        if not any(_matches(group, [pattern]) for group in groups):
            names = ", ".join(group.name for group in groups[:8])
            raise SpaceError(f"pattern {pattern!r} matches no layer; layers are named like {names}")


def _restrict_group(group: ChannelGroup, config: SpaceConfig, alignment: int) -> ChannelGroup:
    if group.fixed:
        return group
    if _matches(group, config.skip):
        return dataclasses.replace(group, fixed="kept by --skip")
    if config.only and not _matches(group, config.only):
        return dataclasses.replace(group, fixed="not named by --only")
    narrow_divisor = alignment if group.width > FEWEST_WIDTHS * alignment else 1
    divisor = lcm(config.divisor or (WIDE_DIVISOR if group.width >= WIDE else narrow_divisor), group.conv_groups)
    if not config.divisor and FEWEST_WIDTHS * divisor > group.width:
        divisor = group.conv_groups
    divisor = min(divisor, group.width)
    low, high = config.floor, 1.0
    for pattern, least, most in config.bounds:
        if _matches(group, [pattern]):
            low, high = least, most
    ceiling = group.width if high == 1.0 else max(divisor, int(high * group.width) // divisor * divisor)
    floor = min(max(1, ceil(low * group.width)), ceiling)
    new = dataclasses.replace(group, divisor=divisor, floor=floor, ceiling=ceiling)
    if new.lowest == group.width:
        return dataclasses.replace(group, fixed=f"no narrower multiple of {divisor} between floor and dense width")
    return new


def uniform_ratios(space: SearchSpace) -> list[float]:
    """Return equal width ratios, for which `fit` keeps the same fraction of every group."""
    return [1.0] * len(space.variable)


def describe(groups: Sequence[ChannelGroup]) -> list[dict[str, Any]]:
    """Return one row of plain values per group, for reports."""
    return [
        {"group": g.name, "width": g.width, "lowest": g.lowest, "divisor": g.divisor, "layers": list(g.producers)}
        for g in groups
    ]
