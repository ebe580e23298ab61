"""Operations of a forward pass: torch names, grouped by the way channels pass through them, and their FLOPs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spaces.tracing.labels import Ids


@dataclass(frozen=True)
class Flow:
    """The channel axis of an activation, and the channel id at each index along it."""

    axis: int
    ids: Ids


@dataclass(frozen=True)
class CountedWeight:
    """An operation whose FLOPs are `times` multiply-adds for every element of a weight (convolution, linear)."""

    weight: str
    times: int
    layer: str = ""


@dataclass(frozen=True)
class CountedActivation:
    """An operation whose FLOPs are `times` for every channel of an activation (normalisation, pooling)."""

    ids: Ids
    times: int
    layer: str = ""


@dataclass(frozen=True)
class GroupedLayer:
    """A layer that splits its input and output channels into `groups` equal groups.

    It is a convolution, a normalisation, or one that cuts an activation into parts.
    """

    name: str  # the name of the convolution's weight, or of the layer
    groups: int
    inputs: Ids
    outputs: Ids


@dataclass(frozen=True)
class RecordedTensor:
    """A tensor that an operation gave: its shape, and its channels where they are known."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    flow: Flow | None


@dataclass(frozen=True)
class Step:
    """One torch function of the recorded forward pass.

    Attributes:
        name: of the torch function.
        text: what it did, for a reason; with shapes where they tell more than the name.
        layer: the innermost layer that was being computed.
        entering: channel ids of every activation that entered.
        leaves: its outputs; `structure` puts them together again.
        reads: channels of the activation over which a weight sums; None for an operation without such a weight.
        normalises: whether it is known to normalise over the channels, be it its weight, so that a narrow network gives
            other values.
    """

    name: str
    text: str
    layer: str
    entering: tuple[Ids, ...]
    leaves: tuple[Any, ...]  # a RecordedTensor in the place of every tensor
    structure: Any
    reads: Flow | None = None
    normalises: bool = False


# FLOPs that fvcore counts per element: of the input for pooling, of the output for interpolation.
POOLED = {"adaptive_avg_pool2d": 1}
INTERPOLATED = {"nearest": 1, "bilinear": 4}
SAMPLED = 4  # of the output of `grid_sample`, whatever its mode
MIXING = {
    *("matmul", "bmm", "mm", "einsum", "baddbmm", "addmm", "__matmul__", "__rmatmul__", "tensordot", "outer", "cdist"),
    *("scaled_dot_product_attention", "multi_head_attention_forward", "_native_multi_head_attention"),
    *("__setitem__", "local_response_norm"),
}
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
NORMALISATIONS = {"batch_norm": 2, "layer_norm": 5, "group_norm": 5, "instance_norm": 5, "rms_norm": 0}
OVER_CHANNELS = {"layer_norm", "group_norm", "rms_norm"}
NORMS = {"norm", "linalg_norm", "linalg_vector_norm"}
REDUCTIONS = {"mean", "sum", "amax", "amin", "std", "var", "prod", "logsumexp", "max", "min", "median", *NORMS}
# Of channels that are equal in pairs, one of each pair gives the same.
MEANS = {"mean", "std", "var", "amax", "amin", "max", "min"}
# Functions that make each value of a weight depend on others: a filter of fewer inputs is standardised by these alone.
OVER_WEIGHTS = {*NORMALISATIONS, *REDUCTIONS, "std_mean", "var_mean", "normalize"}
CONCATENATIONS = {"cat", "concat", "concatenate"}
VIEWS = {  # mostly without a copy
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "__get__", "t"),
    *("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "expand", "expand_as", "broadcast_to"),
    *("chunk", "split", "tensor_split", "unsafe_chunk", "unsafe_split", "split_with_sizes", "unbind", "__getitem__"),
    *("narrow", "select", "diagonal"),
}
LIKE_ANOTHER = {"expand_as", "view_as", "reshape_as"}  # give the shape of another tensor, with as many channels
AT_PLACES = {"roll", "index_select", "gather", "take_along_dim"}  # moves that depend on where an element stands
SHUFFLES = {"channel_shuffle", "native_channel_shuffle"}  # right if every block of channels loses the same indices
# Functions that only move elements, or repeat or leave out some: done to channel ids, they show where channels go.
MOVES = VIEWS | {
    *("rot90", "flip", "roll", "fliplr", "repeat", "tile", "repeat_interleave", "hstack", "vstack"),
    *("index_select", "take_along_dim", "gather", "unfold"),
    *("pixel_shuffle", "pixel_unshuffle", *SHUFFLES),
}
# Functions that give Python values: what follows may depend on them, and is recorded as this pass took it.
VALUES = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy"}


def argument(args: Any, kwargs: Mapping[str, Any], position: int, name: str, default: Any = None) -> Any:
    """Return an argument of a torch function, be it given by its position or by its name."""
    return args[position] if len(args) > position else kwargs.get(name, default)
