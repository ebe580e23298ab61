"""List the operations that a net runs: the channels of each at given widths, and a call that runs it alone.

The recorder that finds the search space follows one forward pass on the meta device, so the channels of an operation
are known as sums of group widths. Operations that differ in their channels only share one `Kernel`. The time of a
kernel is a function of its input and output channels, or of one number where the two are equal.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from typing_extensions import override

from spaces.space import SearchSpace
from spaces.tracing.labels import ChannelLabels, Ids
from spaces.tracing.operations import CONVOLUTIONS, TRANSPOSED, VIEWS
from spaces.tracing.recording import Recorder, record_forward

# Views and queries of shapes: they take no time that grows with the channels.
FREE = VIEWS | {"detach", "size", "dim", "numel"}
ChannelPair = tuple[int, int]  # input and output channels; equal where a kernel has one number of channels


@dataclass(frozen=True)
class Extent:
    """Channels along an axis: `constant + sum(share of group * width of group)` over the variable groups.

    Attributes:
        parts: (index of a variable group, channels of this axis per channel of the group).
    """

    constant: int
    parts: tuple[tuple[int, float], ...]

    def at(self, widths: Sequence[int]) -> int:
        """Return the channels at widths in the order of the variable groups."""
        return round(self.constant + sum(share * widths[group] for group, share in self.parts))


@dataclass(frozen=True)
class Work:
    """What a kernel does for every channel, whatever the device; `rates` makes seconds of it.

    Attributes:
        depthwise: whether `products` and `weights` are per channel; otherwise they are per pair of an input and an
            output channel.
        products: multiplications.
        weights: numbers that are read once a call.
        inputs, outputs: elements read per input channel, and written per output channel.
    """

    depthwise: bool = False
    products: float = 0.0
    weights: float = 0.0
    inputs: float = 0.0
    outputs: float = 0.0


@dataclass(frozen=True)
class Kernel:
    """The common part of operations that differ in their channels only.

    Attributes:
        name: of the torch function.
        key: of all that the time depends on but the channels, such as resolution and size of the kernel.
        independent: whether input and output channels vary independently; otherwise they are equal.
        call: (channels, device, dtype, memory format) -> a call that runs the operation alone.
        work: what it does for every channel.
        multiple: divisor of all channels, for grouped convolutions.
    """

    name: str
    key: str
    independent: bool
    call: Callable[[ChannelPair, torch.device, torch.dtype, torch.memory_format], Callable[[], object]]
    work: Work = Work()
    multiple: int = 1


@dataclass(frozen=True)
class Operation:
    """An operation of the net.

    Attributes:
        kernel: index of its kernel.
        in_channels, out_channels: equal unless the kernel's are independent.
        stage: number of spatial positions of its output, which tells the stages of a net apart.
    """

    kernel: int
    in_channels: Extent
    out_channels: Extent
    stage: int


def list_operations(net: nn.Module, space: SearchSpace, batch: int) -> tuple[list[Kernel], list[Operation]]:
    """Follow one forward pass of the dense net and return the operations that take time, with their kernels.

    Args:
        net: the network that `space` was traced from; it is not changed.
        batch: images of one inference.
    """
    try:
        recorder = _record_calls(net, space, batch, torch.device("meta"))  # shapes alone, which takes no time
    except (RuntimeError, NotImplementedError):  # the network reads values of tensors
        recorder = _record_calls(net, space, batch, torch.device("cpu"))
    parser = _CallParser(space, recorder, recorder.labels.components())
    kernels: dict[str, tuple[int, Kernel]] = {}
    operations = []
    for call in recorder.calls:
        kernel, in_channels, out_channels = parser.parse(call)
        index, _ = kernels.setdefault(kernel.key, (len(kernels), kernel))
        operations.append(Operation(index, in_channels, out_channels, call.stage))
    return [kernel for _, kernel in kernels.values()], operations


def _record_calls(net: nn.Module, space: SearchSpace, batch: int, device: torch.device) -> "_CallRecorder":
    copied = copy.deepcopy(net).to(device).eval()
    recorder = _CallRecorder(copied, ChannelLabels())
    with torch.no_grad():
        record_forward(recorder, copied, torch.zeros((batch, *space.input_shape), device=device))
    return recorder


def extent_matrix(extents: Sequence[Extent], groups: int) -> NDArray[np.float64]:
    """Return extents as rows (constant, share of each group), shape (extents, 1 + groups)."""
    rows = np.zeros((len(extents), 1 + groups))
    for row, extent in zip(rows, extents, strict=True):
        row[0] = extent.constant
        for group, share in extent.parts:
            row[1 + group] += share
    return rows


@dataclass(frozen=True)
class _RecordedCall:
    """A call of the recorded forward pass.

    Attributes:
        leaves: of its arguments, with every tensor replaced by a `_Shape`; `structure` puts them together again.
        out: channel ids of the output; None where it has none.
        stage: see `Operation`.
    """

    name: str
    func: Callable[..., Any]
    leaves: list[Any]
    structure: Any
    out: Ids | None
    stage: int


@dataclass(frozen=True)
class _Shape:
    """A tensor of a recorded call; `ids` has the channel ids of each axis that holds channels."""

    sizes: tuple[int, ...]
    ids: Mapping[int, Ids]
    dtype: torch.dtype


class _CallRecorder(Recorder):
    """A recorder that also lists the calls that take time."""

    def __init__(self, model: nn.Module, labels: ChannelLabels) -> None:
        super().__init__(model, labels)
        self.calls: list[_RecordedCall] = []

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        leaves, structure = tree_flatten((args, kwargs or {}))
        shapes = [self._shape(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        out = super().__torch_function__(func, types, args, kwargs)
        if isinstance(out, Tensor) and name.strip("_") not in FREE and name not in FREE and out.ndim > 1:
            if any(isinstance(shape, _Shape) for shape in shapes):
                flow = self._flow(out)
                ids = None if flow is None else flow.ids
                stage = int(np.prod(out.shape[2:], dtype=np.int64)) if out.ndim == 4 else 1
                self.calls.append(_RecordedCall(name, func, shapes, structure, ids, stage))
        return out

    def _shape(self, value: Tensor) -> _Shape:
        name, flow = self._name(value), self._flow(value)
        ids: Mapping[int, Ids] = {}
        if name is not None:
            ids = self.axes[name]
            if name in self.transposed:  # they are those of its filters, not of the tensor
                ids = {1 - dim if dim < 2 else dim: axis for dim, axis in ids.items()}
        elif flow is not None:
            ids = {flow.axis: flow.ids}
        return _Shape(tuple(value.shape), ids, value.dtype)


class _CallParser:
    """Turns recorded calls into kernels and extents over the groups of the space."""

    def __init__(self, space: SearchSpace, recorder: _CallRecorder, components: Ids) -> None:
        self._components = components
        self._channel = np.full(int(components.max(initial=-1)) + 1, -1, dtype=np.int64)
        for name, dims in recorder.axes.items():
            for dim, ids in dims.items():
                known = space.axes.get(name, {}).get(dim)
                if known is not None and len(known) == len(ids):
                    self._channel[components[ids]] = known
        self._starts = np.array([group.start for group in space.groups], dtype=np.int64)
        self._widths = [group.width for group in space.groups]
        variable = {group.name: index for index, group in enumerate(space.variable)}
        self._index = [variable.get(group.name) for group in space.groups]

    def parse(self, call: _RecordedCall) -> tuple[Kernel, Extent, Extent]:
        """Return the call's kernel, and the input and output channels."""
        shapes = [leaf for leaf in call.leaves if isinstance(leaf, _Shape)]
        if call.name in CONVOLUTIONS | TRANSPOSED | {"linear"} and len(shapes) > 1:
            if 1 in shapes[1].ids and call.out is not None:
                return self._parse_weighted(call, call.out, shapes[0], shapes[1])
            return self._parse_constant(call)  # its weight is computed, or its channels are fixed
        flows = [next(iter(shape.ids.values())) for shape in shapes if shape.ids]
        ids = call.out if call.out is not None else max(flows, key=len, default=np.zeros(0, np.int64))
        extent = self._extent(ids)
        leaves = [_template(leaf, len(ids)) if isinstance(leaf, _Shape) else leaf for leaf in call.leaves]
        if call.name == "layer_norm":  # one of its arguments is the shape that it normalises over
            leaves = [_CHANNELS if isinstance(leaf, int) and leaf == len(ids) else leaf for leaf in leaves]
        elements = max((math.prod(shape.sizes) for shape in shapes if shape.ids), default=0) / max(1, len(ids))
        work = Work(inputs=elements, outputs=elements)
        return Kernel(call.name, _key(call, leaves), False, _IsolatedCall(call, leaves), work), extent, extent

    def _parse_constant(self, call: _RecordedCall) -> tuple[Kernel, Extent, Extent]:
        """Parse an operation whose time is taken to be that in the dense network."""
        leaves = [_Template(leaf.sizes, (), leaf.dtype) if isinstance(leaf, _Shape) else leaf for leaf in call.leaves]
        return Kernel(call.name, _key(call, leaves), False, _IsolatedCall(call, leaves)), Extent(1, ()), Extent(1, ())

    def _parse_weighted(
        self, call: _RecordedCall, out: Ids, value: _Shape, weight: _Shape
    ) -> tuple[Kernel, Extent, Extent]:
        """Parse a convolution or linear layer, whose input and output channels may differ."""
        axis = 1 if call.name != "linear" else len(value.sizes) - 1
        depthwise = call.name != "linear" and weight.sizes[1] == 1 < value.sizes[1] and 1 in value.ids
        depthwise = depthwise and len(out) > 1
        transposed = call.name in TRANSPOSED and not depthwise
        rows, columns = (1, 0) if transposed else (0, 1)  # axes of the weight along which outputs and inputs lie
        in_channels = self._extent(value.ids[1] if depthwise else weight.ids[columns])
        out_channels = in_channels if depthwise else self._extent(weight.ids[rows])
        dense_in, dense_out = value.sizes[axis], weight.sizes[rows]
        growth = (0, dense_in) if depthwise else (1, dense_out)
        leaves: list[Any] = []
        for leaf in call.leaves:
            if leaf is value:
                leaves.append(_Template(value.sizes, ((axis, 0, dense_in),), value.dtype))
            elif leaf is weight:
                second = () if depthwise else ((columns, 0, dense_in),)
                leaves.append(_Template(weight.sizes, ((rows, *growth), *second), weight.dtype))
            elif isinstance(leaf, _Shape):
                leaves.append(_Template(leaf.sizes, ((0, *growth),), leaf.dtype))
            elif depthwise and leaf == dense_in and isinstance(leaf, int):
                leaves.append(_CHANNELS)  # the argument `groups`
            else:
                leaves.append(leaf)
        multiple = 1 if depthwise or transposed else dense_in // weight.sizes[1]
        kernel = Kernel(
            call.name,
            _key(call, leaves),
            not depthwise,
            _IsolatedCall(call, leaves),
            _weighted_work(call, value, weight, dense_in, depthwise, multiple),
            multiple,
        )
        return kernel, in_channels, out_channels

    def _extent(self, ids: Ids) -> Extent:
        channels = self._channel[self._components[ids]]
        members = np.searchsorted(self._starts, channels[channels >= 0], side="right") - 1
        constant, parts = int((channels < 0).sum()), []
        for group, count in zip(*np.unique(members, return_counts=True), strict=True):
            index = self._index[group]
            if index is None:
                constant += int(count)
            else:
                parts.append((index, float(count) / self._widths[group]))
        return Extent(constant, tuple(parts))


def _weighted_work(
    call: _RecordedCall, value: _Shape, weight: _Shape, in_channels: int, depthwise: bool, conv_groups: int
) -> Work:
    weights = math.prod(weight.sizes[2:]) / conv_groups
    inputs, outputs = math.prod(value.sizes) / in_channels, float(call.stage * value.sizes[0])
    positions = inputs if call.name in TRANSPOSED else outputs
    return Work(depthwise, weights * positions, weights, inputs, outputs)


_CHANNELS = "number of channels"  # stands for an integer argument that equals the number of channels


@dataclass(frozen=True)
class _Template:
    """A tensor whose shape follows the channels.

    Attributes:
        growing: (axis, index into the `ChannelPair`, channels of that index in the dense net).
    """

    sizes: tuple[int, ...]
    growing: tuple[tuple[int, int, int], ...]
    dtype: torch.dtype

    def at(self, channels: ChannelPair) -> tuple[int, ...]:
        """Return the shape at these channels."""
        sizes = list(self.sizes)
        for axis, index, dense in self.growing:
            sizes[axis] = max(1, round(self.sizes[axis] * channels[index] / dense))
        return tuple(sizes)

    @override
    def __str__(self) -> str:
        growing = {axis: f"{self.sizes[axis] / dense:.4g}x{index}" for axis, index, dense in self.growing}
        return str([growing.get(axis, size) for axis, size in enumerate(self.sizes)])


def _template(shape: _Shape, channels: int) -> _Template:
    growing = [(axis, 0, channels) for axis, ids in shape.ids.items() if channels and 1 < len(ids) == channels]
    return _Template(shape.sizes, tuple(growing), shape.dtype)


def _key(call: _RecordedCall, leaves: Sequence[Any]) -> str:
    return f"{call.name}{call.structure}{[str(leaf) for leaf in leaves]}"


class _IsolatedCall:
    """Makes the call that runs an operation alone on zeros: its time does not depend on the values."""

    def __init__(self, call: _RecordedCall, leaves: Sequence[Any]) -> None:
        self._func, self._structure, self._leaves = call.func, call.structure, list(leaves)

    def __call__(
        self, channels: ChannelPair, device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format
    ) -> Callable[[], object]:
        def argument(leaf: Any) -> Any:
            if leaf is _CHANNELS:
                return channels[0]
            if not isinstance(leaf, _Template):
                return leaf
            kind = dtype if leaf.dtype.is_floating_point else leaf.dtype
            tensor = torch.zeros(leaf.at(channels), dtype=kind, device=device)
            return tensor.contiguous(memory_format=memory_format) if tensor.ndim == 4 else tensor

        args, kwargs = tree_unflatten([argument(leaf) for leaf in self._leaves], self._structure)

        def call() -> object:
            return self._func(*args, **kwargs)

        return call
