"""Operations of a forward pass: torch names, grouped by the way channels pass through them, and their FLOPs."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class CountedActivation:
    """An operation whose FLOPs are `times` for every channel of an activation (normalisation, pooling)."""

    ids: Ids
    times: int


@dataclass(frozen=True)
class GroupedLayer:
    """A convolution or normalisation that splits its input and output channels into `groups` equal groups."""

    name: str  # the name of the convolution's weight, or of the normalisation layer
    groups: int
    inputs: Ids
    outputs: Ids


# FLOPs that fvcore counts per element: of the input for pooling, of the output for interpolation.
POOLED = {"adaptive_avg_pool2d": 1}
INTERPOLATED = {"nearest": 1, "bilinear": 4}
UNCOUNTABLE = {"matmul", "bmm", "mm", "einsum", "baddbmm", "__matmul__", "__rmatmul__", "scaled_dot_product_attention"}
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
NORMALISATIONS = {"batch_norm": 2, "layer_norm": 5, "group_norm": 5, "instance_norm": 5}
RESHAPES = {"view", "reshape", "flatten", "squeeze", "unsqueeze"}
REDUCTIONS = {"mean", "sum", "amax", "amin"}
PERMUTATIONS = {"permute", "transpose", "movedim", "swapaxes"}
CONCATENATIONS = {"cat", "concat", "concatenate"}
PARTS = {"chunk", "split", "__getitem__", "narrow", "select", "unbind", "tensor_split", "pixel_shuffle"}
