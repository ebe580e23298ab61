"""What is known of the tensors of a forward pass: their channels, what they are computed from, and what is counted."""

from math import prod
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from spaces.space import SizeName
from spaces.tracing.labels import ChannelLabels, Ids
from spaces.tracing.operations import OVER_WEIGHTS, CountedActivation, CountedWeight, Flow, GroupedLayer
from spaces.tracing.sizes import WrittenSize


class ChannelFlows:
    """Knows the channels of every activation, and notes what operations do with them.

    Args:
        model: every dimension of its parameters and buffers is an axis.
        labels: gives the channel ids and takes their relations.
    """

    def __init__(self, model: nn.Module, labels: ChannelLabels) -> None:
        self.labels = labels
        self.axes: dict[str, dict[int, Ids]] = {}
        self.counted: list[CountedWeight | CountedActivation] = []
        self.grouped: list[GroupedLayer] = []
        self.sizes: dict[SizeName, Ids] = {}  # number in an attribute of a module -> the channels that it counts
        self.producers: list[str] = []  # weights of convolutions and linear layers, in order of execution
        self.transposed: set[str] = set()  # of these, those whose axes 0 and 1 are dimensions 1 and 0 of the tensor
        self.computed: set[str] = set()  # of these, those from which a tensor is computed that a function takes
        self.depthwise: set[str] = set()  # of these, those of which every filter reads one channel
        self.strides: dict[str, int] = {}  # of these, those of transposed convolutions -> product of the strides
        self.biases: dict[str, str] = {}  # of these, those with a bias that is a parameter
        self.lost: list[str] = []  # operations whose channels could not be followed, with their layer
        self.counting = True  # whether operations are counted
        self._layers: list[str] = []  # that are being computed, the innermost last
        self._flows: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._origins: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # tensors that do not depend on the image
        self._standardised: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # of these, those a norm went into
        self._reads: Flow | None = None  # of the function that is being followed
        self._normalises = False
        self._text = ""
        self._names: dict[int, str] = {}
        self.parameters = [name for name, _ in model.named_parameters()]
        self.element_sizes: dict[str, int] = {}  # tensor of the model -> bytes of one of its elements
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self._names[id(tensor)] = name
            self.element_sizes[name] = tensor.element_size()
            self.axes[name] = {dim: labels.fresh(size) for dim, size in enumerate(tensor.shape)}

    @property
    def layer(self) -> str:
        """Name of the innermost layer that is being computed; empty outside of all."""
        return self._layers[-1] if self._layers else ""

    def _flow(self, value: Any) -> Flow | None:
        """Return the channels of an activation, or of real numbers of the network along a single axis."""
        if not isinstance(value, Tensor):
            return None
        name = self._name(value)
        if name is None:
            flow: Flow | None = self._flows.get(value)
            return flow
        axes = [axis for axis, size in enumerate(value.shape) if size > 1 and value.is_floating_point()]
        return Flow(axes[0], self.axes[name][axes[0]]) if len(axes) == 1 else None

    def _set(self, tensor: Tensor, flow: Flow) -> None:
        if self._name(tensor) is None:
            self._flows[tensor] = flow

    def _name(self, value: Any) -> str | None:
        return self._names.get(id(value)) if isinstance(value, Tensor) else None

    def _origin(self, value: Tensor) -> str | None:
        """Return the parameter of several axes that a tensor is, or is computed from."""
        name = self._name(value)
        several = name is not None and value.ndim > 1 and self._flow(value) is None
        origin: str | None = name if several else self._origins.get(value)
        return origin

    def _note_origin(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Remember tensors that are computed from a weight without the image, such as a standardised weight."""
        tensors = [leaf for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, Tensor)]
        if not tensors or not all(self._name(tensor) or tensor in self._origins for tensor in tensors):
            return
        origins = {origin for tensor in tensors if (origin := self._origin(tensor)) is not None}
        origin = next(iter(origins)) if len(origins) == 1 else None
        for tensor in tensors if origin is not None else ():  # a gain per filter
            flow, outputs = self._flow(tensor), self.axes[origin or ""][0]
            if flow is not None and len(flow.ids) == len(outputs):
                self.labels.unite(flow.ids, outputs)
        standardised = name in OVER_WEIGHTS or any(tensor in self._standardised for tensor in tensors)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and self._name(leaf) is None:
                self._origins[leaf] = origin
                if standardised:
                    self._standardised[leaf] = True

    def _lose(self, text: str, args: Any) -> None:
        """Fix every channel that enters an operation which cannot be followed."""
        reason = f"{text} in {self.layer or 'the network'} cannot be followed"
        for leaf in tree_leaves(args):
            flow = self._flow(leaf)
            if flow is not None:
                self.lost.append(reason)
                self.labels.fix(flow.ids, reason)

    def _constant(self, name: str, length: int) -> Ids:
        """Return ids of channels that do not come from a layer, such as coordinates or zeros; they are never cut."""
        ids = self.labels.fresh(length)
        self.labels.fix(ids, f"{name} in {self.layer or 'the network'} gives it channels that no layer writes")
        return ids

    def _same_channels(self, parts: Any) -> Flow | None:
        """Unite the channels of activations that stand side by side along another axis; None where they differ."""
        flows = [self._flow(part) for part in parts]
        known = [flow for flow in flows if flow is not None]
        if len(known) < len(parts) or len({(flow.axis, len(flow.ids)) for flow in known}) != 1:
            return None
        for flow in known[1:]:
            self.labels.unite(known[0].ids, flow.ids)
        return known[0]

    def _tie_blocks(self, value: Tensor, blocks: int) -> None:
        """Unite the channels that stand at one place of each of the equal blocks of an activation."""
        flow = self._flow(value)
        if flow is not None:
            for block in flow.ids.reshape(blocks, -1):
                self.labels.unite(flow.ids[: len(block)], block)

    def _count(self, flow: Flow, value: Tensor, per_element: int) -> None:
        elsewhere = prod(size for axis, size in enumerate(value.shape) if axis != flow.axis)
        if self.counting:
            self.counted.append(CountedActivation(flow.ids, per_element * elsewhere, self.layer))

    def _count_weight(self, weight: str, times: int) -> None:
        if self.counting:
            self.counted.append(CountedWeight(weight, times, self.layer))

    def _note_size(self, size: Any, ids: Ids) -> None:
        """Note that a number counts these channels, if it was written in an attribute and is as large."""
        counted = size.counted(ids) if isinstance(size, WrittenSize) else None
        if counted is not None:
            self.sizes.setdefault(size.name, counted)
