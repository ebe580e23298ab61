"""Passes: the recorded forward pass once more, of the dense network and of a narrow one, step by step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from spaces.tracing.labels import Ids
from spaces.tracing.operations import Flow, RecordedTensor, Step
from spaces.tracing.recording import following_layers, is_step, kept_attributes

# A sum of float32 in another order differs by about 1e-6 of the largest value, and deep networks amplify this; a wrong
# channel differs by about as much as the values themselves.
TOLERANCE = 1e-2
MOST_BYTES = 2**30  # of outputs of the dense network that are kept at a time
SAMPLED = 32  # positions per channel that are compared, beside the mean over all


class PathError(Exception):
    """A forward pass that left the recorded path."""


class Pass(TorchFunctionMode):
    """A forward pass that follows recorded steps; `layers` are the modules that are being computed."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.layers: list[str] = []
        self.position = 0
        self._steps = steps

    def run(self, net: nn.Module, image: Tensor) -> Any:
        """Run the network on an image and return its outputs."""
        layers = following_layers(net, lambda name, _: self.layers.append(name), self.layers.pop)
        with layers, kept_attributes(net), self:
            return net(image)

    def _next(self, name: str) -> Step:
        if self.position >= len(self._steps) or self._steps[self.position].name != name:
            raise PathError("takes another path than the dense network did")
        self.position += 1
        return self._steps[self.position - 1]


class DensePass(Pass):
    """Runs the dense network with masked channels, and keeps samples of what every step gave.

    Args:
        whole: whether the whole outputs are kept, so that a narrow network can go on with them after a fault.
    """

    def __init__(self, steps: Sequence[Step], kept_of: Callable[[Ids], Ids], whole: bool) -> None:
        super().__init__(steps)
        self.samples: list[list[Tensor | None]] = []
        self.whole: dict[int, list[Tensor]] = {}  # step -> its tensors, where a narrow network goes on with them
        self._kept_of = kept_of
        self._bytes_left = MOST_BYTES if whole else 0

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        upcoming = self._steps[self.position] if self.position < len(self._steps) else None
        if upcoming is not None and upcoming.reads is not None and upcoming.name == name and args:
            args = (self._masked(args[0], upcoming.reads), *args[1:])
        out = func(*args, **(kwargs or {}))
        if is_step(name, out):
            step = self._next(name)
            leaves = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            recorded = [leaf for leaf in step.leaves if isinstance(leaf, RecordedTensor)]
            if [tuple(leaf.shape) for leaf in leaves] != [leaf.shape for leaf in recorded]:
                raise PathError("takes another path than the dense network did")
            pairs = zip(leaves, recorded, strict=True)
            self.samples.append([_sample(leaf, tensor.flow) for leaf, tensor in pairs])
            self._bytes_left -= sum(leaf.nbytes for leaf in leaves)
            if step.normalises or self._bytes_left >= 0:
                self.whole[self.position - 1] = [leaf.clone() for leaf in leaves]
        return out

    def _masked(self, value: Tensor, flow: Flow) -> Tensor:
        index = self._kept_of(flow.ids)
        if len(index) == len(flow.ids):
            return value
        mask = torch.zeros(len(flow.ids), dtype=value.dtype)
        mask[torch.from_numpy(index)] = 1
        return value * mask.reshape([-1 if axis == flow.axis else 1 for axis in range(value.ndim)])


class NarrowPass(Pass):
    """Runs a narrow network, and compares every step with the dense one."""

    def __init__(self, steps: Sequence[Step], dense: DensePass, kept_of: Callable[[Ids], Ids]) -> None:
        super().__init__(steps)
        self.faults: list[int] = []  # steps
        self._dense, self._kept_of = dense, kept_of
        self._tainted: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # depends on the output of a fault
        # Made as wide as some activation, e.g. a filter that is repeated for every channel; what it meets is compared.
        self._loose: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        given = [leaf for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, Tensor)]
        tainted = any(tensor in self._tainted for tensor in given)
        try:
            out = func(*args, **(kwargs or {}))
        except Exception:
            if self.position >= len(self._steps) or self._steps[self.position].name != name:
                raise
            self.faults.append(self.position)
            return self._predicted(self._next(name))
        return self._checked(self._next(name), given, out, tainted) if is_step(name, out) else out

    def _checked(self, step: Step, given: Sequence[Tensor], out: Any, tainted: bool) -> Any:
        """Compare what a step gave; return that, or in its place what the pass goes on with."""
        number = self.position - 1
        leaves = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        recorded = [leaf for leaf in step.leaves if isinstance(leaf, RecordedTensor)]
        fits = [tuple(leaf.shape) for leaf in leaves] == [self._shape(tensor) for tensor in recorded]
        if not step.entering and all(tensor.flow is None for tensor in recorded):
            if not fits or any(tensor in self._loose for tensor in given):
                self._mark(self._loose, leaves)
                return out
        if not fits:
            self.faults.append(number)
            return self._predicted(step)
        if step.normalises:
            return self._from_dense(number, step)
        if not tainted and not self._agrees(number, leaves, recorded):
            self.faults.append(number)
            if number in self._dense.whole:
                return self._from_dense(number, step)
            tainted = True
        if tainted:
            self._mark(self._tainted, leaves)
        return out

    @staticmethod
    def _mark(marked: WeakTensorKeyDictionary, leaves: Sequence[Tensor]) -> None:
        for leaf in leaves:
            marked[leaf] = True

    @override
    def run(self, net: nn.Module, image: Tensor) -> Any:
        out = super().run(net, image)
        if any(leaf in self._loose for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            raise PathError("gives outputs of another shape than the dense network")
        return out

    def _shape(self, tensor: RecordedTensor) -> tuple[int, ...]:
        sizes = list(tensor.shape)
        if tensor.flow is not None:
            sizes[tensor.flow.axis] = len(self._kept_of(tensor.flow.ids))
        return tuple(sizes)

    def _predicted(self, step: Step) -> Any:
        """Return tensors of the predicted shapes, with which the pass goes on after a fault."""
        if self.position - 1 in self._dense.whole:
            return self._from_dense(self.position - 1, step)
        leaves = []
        for leaf in step.leaves:
            if isinstance(leaf, RecordedTensor):
                leaf = torch.zeros(self._shape(leaf), dtype=leaf.dtype)
                self._tainted[leaf] = True
            leaves.append(leaf)
        return tree_unflatten(leaves, step.structure)

    def _from_dense(self, number: int, step: Step) -> Any:
        """Return the kept channels of what the dense network gave."""
        given = iter(self._dense.whole[number])
        leaves = []
        for leaf in step.leaves:
            if isinstance(leaf, RecordedTensor):
                flow, leaf = leaf.flow, next(given)
                if flow is not None:
                    leaf = leaf.index_select(flow.axis, torch.from_numpy(self._kept_of(flow.ids)))
            leaves.append(leaf)
        return tree_unflatten(leaves, step.structure)

    def _agrees(self, number: int, leaves: Sequence[Tensor], recorded: Sequence[RecordedTensor]) -> bool:
        samples = zip(leaves, recorded, self._dense.samples[number], strict=True)
        for leaf, tensor, dense in samples:
            ours = _sample(leaf, tensor.flow)
            if ours is None or dense is None:
                continue
            if tensor.flow is not None:
                dense = dense[torch.from_numpy(self._kept_of(tensor.flow.ids))]
            scale = float(dense.abs().nan_to_num(0, 0, 0).max()) if dense.numel() else 0.0
            differs = (ours - dense).abs() > TOLERANCE * scale + 1e-6
            if bool(differs.any()):
                return False
        return True


def _sample(value: Tensor, flow: Flow | None) -> Tensor | None:
    """Return some values of every channel and their mean, shape (channels, values); None for complex numbers."""
    if value.is_complex() or not value.numel():
        return None
    value = value.detach()
    rows = value.reshape(1, -1) if flow is None else value.movedim(flow.axis, 0).reshape(value.shape[flow.axis], -1)
    rows = rows.float() if value.dtype != torch.float64 else rows
    step = max(1, rows.shape[1] // (SAMPLED if flow is not None else SAMPLED**2))
    return torch.cat([rows[:, ::step], rows.mean(1, keepdim=True)], 1)
