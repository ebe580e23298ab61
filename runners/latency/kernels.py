"""The operations of a net one by one: how many channels each has at given widths, and a call that runs it alone.

One forward pass on the meta device is followed by the recorder that finds the space, so an operation's channels are
known as sums of group widths. Operations alike but for their channels share one `Kernel`, whose time is then a
function of two numbers, the channels read and written, or of one.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from spaces.space import SearchSpace
from spaces.tracing.labels import ChannelLabels, Ids
from spaces.tracing.operations import CONVOLUTIONS, PARTS, PERMUTATIONS, RESHAPES
from spaces.tracing.recording import Recorder, record_forward

# Views and questions about shapes take no time that grows with the channels.
FREE = RESHAPES | PERMUTATIONS | (PARTS - {"pixel_shuffle"}) | {"expand", "detach", "size", "dim", "numel", "__get__"}
Slots = tuple[int, int]  # channels read and written; the same number twice where there is one


@dataclass(frozen=True)
class Extent:
    """Channels along an axis: `constant + sum(per channel of group * width of group)`, over the variable groups."""

    constant: int
    parts: tuple[tuple[int, float], ...]

    def at(self, widths: Sequence[int]) -> int:
        """Return the channels at these widths."""
        return round(self.constant + sum(share * widths[group] for group, share in self.parts))


@dataclass(frozen=True)
class Kernel:
    """What operations share that differ in their channels alone.

    Attributes:
        name: of the torch function.
        two: whether channels read and written differ; otherwise `Slots` has one number twice.
        call: (channels, device, dtype, memory format) -> the operation alone, to be called for its time.
        multiple: channels must be multiples of it, for grouped convolutions.
    """

    name: str
    two: bool
    call: Callable[[Slots, torch.device, torch.dtype, torch.memory_format], Callable[[], object]]
    multiple: int = 1


@dataclass(frozen=True)
class Operation:
    """An operation of the net.

    Attributes:
        kernel: index of its kernel.
        read, written: channels; equal where the kernel has one number.
        stage: positions of the images at its output, which tells the stages of a net apart.
    """

    kernel: int
    read: Extent
    written: Extent
    stage: int


def operations(net: nn.Module, space: SearchSpace, batch: int) -> tuple[list[Kernel], list[Operation]]:
    """Follow one forward pass of the dense net and list what takes time.

    Args:
        net: the network that `space` was traced from; it stays as it is.
        batch: images of one inference.
    """
    twin = copy.deepcopy(net).to("meta").eval()
    labels = ChannelLabels()
    recorder = _Recorder(twin, labels)
    with torch.no_grad():
        record_forward(recorder, twin, torch.empty((batch, *space.input_shape), device="meta"))
    extents = _Extents(space, recorder, labels.components())
    kernels: dict[str, tuple[int, Kernel]] = {}
    found = []
    for each in recorder.seen:
        key, kernel, read, written = extents.parsed(each)
        index, _ = kernels.setdefault(key, (len(kernels), kernel))
        found.append(Operation(index, read, written, each.stage))
    return [kernel for _, kernel in kernels.values()], found


@dataclass(frozen=True)
class _Seen:
    """A call during the recording: leaves of its arguments, tensors among them as (shape, axis -> ids)."""

    name: str
    func: Callable[..., Any]
    leaves: list[Any]
    structure: Any
    out: Ids | None
    stage: int


@dataclass(frozen=True)
class _Shape:
    sizes: tuple[int, ...]
    ids: Mapping[int, Ids]  # of the axes that hold channels
    dtype: torch.dtype


class _Recorder(Recorder):
    """Notes every call besides what the recorder does with it."""

    def __init__(self, model: nn.Module, labels: ChannelLabels) -> None:
        super().__init__(model, labels)
        self.seen: list[_Seen] = []

    def __torch_function__(  # noqa: D105
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        leaves, structure = tree_flatten((args, kwargs or {}))
        shapes = [self._shape(each) if isinstance(each, Tensor) else each for each in leaves]
        out = super().__torch_function__(func, types, args, kwargs)
        if isinstance(out, Tensor) and name.strip("_") not in FREE and name not in FREE and out.ndim > 1:
            if any(isinstance(each, _Shape) for each in shapes):
                flow = self._flow(out)
                stage = int(np.prod(out.shape[2:], dtype=np.int64)) if out.ndim == 4 else 1
                self.seen.append(_Seen(name, func, shapes, structure, None if flow is None else flow.ids, stage))
        return out

    def _shape(self, value: Tensor) -> _Shape:
        name, flow = self._name(value), self._flow(value)
        ids: Mapping[int, Ids] = {}
        if name is not None:
            ids = self.axes[name]
        elif flow is not None:
            ids = {flow.axis: flow.ids}
        return _Shape(tuple(value.shape), ids, value.dtype)


class _Extents:
    """Turns channel ids of the recording into extents over the groups of the space."""

    def __init__(self, space: SearchSpace, recorder: _Recorder, components: Ids) -> None:
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

    def of(self, ids: Ids) -> Extent:
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

    def parsed(self, seen: _Seen) -> tuple[str, Kernel, Extent, Extent]:
        """Return the key of the operation's kernel, that kernel, and the channels read and written."""
        weighted = [each for each in seen.leaves if isinstance(each, _Shape)]
        if (seen.name in CONVOLUTIONS or seen.name == "linear") and len(weighted) > 1 and 1 in weighted[1].ids:
            return self._weighted(seen, weighted[0], weighted[1])
        flows = [next(iter(each.ids.values())) for each in weighted if each.ids]
        ids = seen.out if seen.out is not None else max(flows, key=len, default=np.zeros(0, np.int64))
        extent = self.of(ids)
        leaves = [_scaled(each, len(ids)) if isinstance(each, _Shape) else each for each in seen.leaves]
        if seen.name == "layer_norm":  # takes the shape that it normalises over
            leaves = [_AS_MANY if isinstance(each, int) and each == len(ids) else each for each in leaves]
        return _key(seen, leaves), Kernel(seen.name, False, _Call(seen, leaves)), extent, extent

    def _weighted(self, seen: _Seen, value: _Shape, weight: _Shape) -> tuple[str, Kernel, Extent, Extent]:
        written = self.of(weight.ids[0])
        depthwise = value.sizes[1] == weight.sizes[0] and weight.sizes[1] == 1 and seen.name in CONVOLUTIONS
        read = written if depthwise else self.of(weight.ids[1])
        axis = 1 if seen.name in CONVOLUTIONS else len(value.sizes) - 1
        reads = value.sizes[axis]
        leaves: list[Any] = []
        for each in seen.leaves:
            if each is value:
                leaves.append(_Template(value.sizes, ((axis, 0, reads),), value.dtype))
            elif each is weight:
                second = () if depthwise else ((1, 0, reads),)
                leaves.append(_Template(weight.sizes, ((0, 1, weight.sizes[0]), *second), weight.dtype))
            elif isinstance(each, _Shape):
                leaves.append(_Template(each.sizes, ((0, 1, weight.sizes[0]),), each.dtype))
            elif depthwise and each == reads and isinstance(each, int):
                leaves.append(_AS_MANY)  # groups
            else:
                leaves.append(each)
        groups = 1 if depthwise else reads // weight.sizes[1]
        return _key(seen, leaves), Kernel(seen.name, not depthwise, _Call(seen, leaves), groups), read, written


_AS_MANY = "as many as channels"


@dataclass(frozen=True)
class _Template:
    """A tensor whose axes (axis, slot, dense channels of the slot) grow with the channels."""

    sizes: tuple[int, ...]
    growing: tuple[tuple[int, int, int], ...]
    dtype: torch.dtype

    def at(self, slots: Slots) -> tuple[int, ...]:
        sizes = list(self.sizes)
        for axis, slot, dense in self.growing:
            sizes[axis] = max(1, round(self.sizes[axis] * slots[slot] / dense))
        return tuple(sizes)

    def __str__(self) -> str:
        growing = {axis: f"{self.sizes[axis] / dense:.4g}x{slot}" for axis, slot, dense in self.growing}
        return str([growing.get(axis, size) for axis, size in enumerate(self.sizes)])


def _scaled(shape: _Shape, channels: int) -> _Template:
    growing = [(axis, 0, channels) for axis, ids in shape.ids.items() if channels and len(ids) > 1]
    return _Template(shape.sizes, tuple(growing), shape.dtype)


def _key(seen: _Seen, leaves: Sequence[Any]) -> str:
    return f"{seen.name}{seen.structure}{[str(each) for each in leaves]}"


class _Call:
    """Makes the call that runs an operation alone, on zeros: time does not depend on the values."""

    def __init__(self, seen: _Seen, leaves: Sequence[Any]) -> None:
        self._func, self._structure, self._leaves = seen.func, seen.structure, list(leaves)

    def __call__(
        self, slots: Slots, device: torch.device, dtype: torch.dtype, form: torch.memory_format
    ) -> Callable[[], object]:
        def made(leaf: Any) -> Any:
            if leaf is _AS_MANY:
                return slots[0]
            if not isinstance(leaf, _Template):
                return leaf
            kind = dtype if leaf.dtype.is_floating_point else leaf.dtype
            tensor = torch.zeros(leaf.at(slots), dtype=kind, device=device)
            return tensor.contiguous(memory_format=form) if tensor.ndim == 4 else tensor

        args, kwargs = tree_unflatten([made(leaf) for leaf in self._leaves], self._structure)

        def call() -> object:
            return self._func(*args, **kwargs)

        return call


def matrix(extents: Sequence[Extent], groups: int) -> NDArray[np.float64]:
    """Return extents as rows (constant, share of each group), shape (extents, 1 + groups)."""
    rows = np.zeros((len(extents), 1 + groups))
    for row, extent in zip(rows, extents, strict=True):
        row[0] = extent.constant
        for group, share in extent.parts:
            row[1 + group] += share
    return rows
