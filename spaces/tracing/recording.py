"""Recording of one forward pass: the flow of the channels, and every operation that fvcore counts.

The pass runs on a copy of the network on the meta device, which computes shapes only. The recorder knows the channel
ids of each activation, and layers, additions, products, concatenations and flattening relate these ids. An operation
that cannot be followed fixes the channels that enter it, and its name is the reason.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from spaces.tracing.axes import permuted, reduced, reshaped
from spaces.tracing.labels import ChannelLabels, Ids
from spaces.tracing.operations import (
    CONCATENATIONS,
    CONVOLUTIONS,
    INTERPOLATED,
    NORMALISATIONS,
    PARTS,
    PERMUTATIONS,
    POOLED,
    REDUCTIONS,
    RESHAPES,
    UNCOUNTABLE,
    CountedActivation,
    CountedWeight,
    Flow,
    GroupedLayer,
)


class Recorder(TorchFunctionMode):
    """Follows channels through every torch function of a forward pass.

    Args:
        model: on the meta device; every dimension of its parameters and buffers is an axis.
        labels: gives the channel ids and takes their relations.
    """

    def __init__(self, model: nn.Module, labels: ChannelLabels) -> None:
        super().__init__()
        self.labels = labels
        self.axes: dict[str, dict[int, Ids]] = {}
        self.counted: list[CountedWeight | CountedActivation] = []
        self.grouped: list[GroupedLayer] = []
        self.producers: list[str] = []  # weights of convolutions and linear layers, in order of execution
        self.lost: list[str] = []  # operations whose channels could not be followed, with their layer
        self._layers: list[str] = []  # that are being computed, the innermost last
        self._flows: dict[int, Flow] = {}
        self._alive: list[Tensor] = []  # keeps activations alive, so that id() stays unique
        self._names: dict[int, str] = {}
        self.parameters = [name for name, _ in model.named_parameters()]
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self._names[id(tensor)] = name
            self.axes[name] = {dim: labels.fresh(size) for dim, size in enumerate(tensor.shape)}
        self._handlers = self._table()

    def _table(self) -> Mapping[str, Callable[..., None]]:
        table: dict[str, Callable[..., None]] = dict.fromkeys(CONVOLUTIONS, self._convolution)
        table |= dict.fromkeys(NORMALISATIONS, self._normalisation)
        table |= dict.fromkeys(RESHAPES, self._reshape)
        table |= dict.fromkeys(REDUCTIONS, self._reduction)
        table |= dict.fromkeys(PERMUTATIONS, self._permutation)
        table |= dict.fromkeys(CONCATENATIONS, self._concatenation)
        table |= dict.fromkeys(PARTS, self._part)
        table |= dict.fromkeys(UNCOUNTABLE, self._uncountable)
        return table | {"linear": self._linear}

    @property
    def layer(self) -> str:
        """Name of the innermost layer that is being computed; empty outside of all."""
        return self._layers[-1] if self._layers else ""

    def enter_layer(self, name: str) -> None:
        """Note that a layer begins."""
        self._layers.append(name)

    def leave_layer(self) -> None:
        """Note that the innermost layer has ended."""
        self._layers.pop()

    def enter(self, tensor: Tensor, reason: str) -> None:
        """Give an input image channels that can never be cut."""
        ids = self.labels.fresh(tensor.shape[1])
        self.labels.fix(ids, reason)
        self._set(tensor, Flow(1, ids))

    def leave(self, output: Any, reason: str) -> None:
        """Fix the channels of the network's outputs."""
        for tensor in tree_leaves(output):
            flow = self._flow(tensor)
            if flow is not None:
                self.labels.fix(flow.ids, reason)

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        out = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):
            handler = self._handlers.get(name.removesuffix("_") if not name.startswith("__") else name)
            if handler is not None:
                handler(name, args, kwargs, out)
            else:
                self._count_resampling(name, args, kwargs, out)
                self._elementwise(name, args, kwargs, out)
        return out

    def _flow(self, value: Any) -> Flow | None:
        return self._flows.get(id(value)) if isinstance(value, Tensor) else None

    def _set(self, tensor: Tensor, flow: Flow) -> None:
        self._flows[id(tensor)] = flow
        self._alive.append(tensor)

    def _name(self, value: Any) -> str | None:
        return self._names.get(id(value)) if isinstance(value, Tensor) else None

    def _lose(self, name: str, args: Any) -> None:
        """Fix every channel that enters an operation which cannot be followed."""
        reason = f"{name} in {self.layer or 'the network'} cannot be followed"
        for leaf in tree_leaves(args):
            flow = self._flow(leaf)
            if flow is not None:
                self.lost.append(reason)
                self.labels.fix(flow.ids, reason)

    def _consume(self, value: Tensor, axis: int, ids: Ids) -> None:
        """Relate the channels of an activation to an axis of a weight."""
        flow = self._flow(value)
        if flow is not None and flow.axis == axis % value.ndim and len(flow.ids) == len(ids):
            self.labels.unite(flow.ids, ids)
            return
        self._lose("an operation before", [value])
        self.labels.fix(ids, f"{self.layer} reads channels that cannot be followed")

    def _weighted(self, weight: Any) -> str | None:
        name = self._name(weight)
        if name is not None and name not in self.producers:
            self.producers.append(name)
        return name

    def _convolution(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value, weight = args[0], args[1] if len(args) > 1 else kwargs["weight"]
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
        weight_name = self._weighted(weight)
        if weight_name is None:
            return self._lose(f"{name} with a computed weight", args)
        self.counted.append(CountedWeight(weight_name, prod(out.shape[2:])))
        outputs = self.axes[weight_name][0]
        if self._name(bias):
            self.labels.unite(outputs, self.axes[self._name(bias) or ""][0])
        if groups == 1:
            self._consume(value, 1, self.axes[weight_name][1])
        elif groups == value.shape[1] == out.shape[1]:  # depthwise
            self._consume(value, 1, outputs)
        else:
            if len(self.axes[weight_name][1]) != value.shape[1]:
                self.axes[weight_name][1] = self.labels.fresh(value.shape[1])
            inputs = self.axes[weight_name][1]
            self._consume(value, 1, inputs)
            self.grouped.append(GroupedLayer(weight_name, groups, inputs, outputs))
        self._set(out, Flow(1, outputs))

    def _linear(self, _name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value, weight = args[0], args[1] if len(args) > 1 else kwargs["weight"]
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        weight_name = self._weighted(weight)
        if weight_name is None:
            return self._lose("linear with a computed weight", args)
        self.counted.append(CountedWeight(weight_name, prod(out.shape[:-1])))
        if self._name(bias):
            self.labels.unite(self.axes[weight_name][0], self.axes[self._name(bias) or ""][0])
        self._consume(value, -1, self.axes[weight_name][1])
        self._set(out, Flow(out.ndim - 1, self.axes[weight_name][0]))

    def _normalisation(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value = args[0]
        flow = self._known(value, -1 if name == "layer_norm" else 1)
        tensors = [argument for argument in [*args[1:], *kwargs.values()] if self._name(argument)]
        if any(tensor.shape != (value.shape[flow.axis],) for tensor in tensors):
            return self._lose(name, args)
        for tensor in tensors:
            self.labels.unite(flow.ids, self.axes[self._name(tensor) or ""][0])
        position = {"batch_norm": 3, "layer_norm": 2, "group_norm": 2, "instance_norm": 3}[name]
        weight = args[position] if len(args) > position else kwargs.get("weight")
        per_element = NORMALISATIONS[name] - (weight is None)
        self._count(flow, value, per_element)
        if name == "group_norm":
            self.grouped.append(GroupedLayer(self.layer, args[1], flow.ids, flow.ids))
        self._set(out, flow)

    def _count(self, flow: Flow, value: Tensor, per_element: int) -> None:
        elsewhere = prod(size for axis, size in enumerate(value.shape) if axis != flow.axis)
        self.counted.append(CountedActivation(flow.ids, per_element * elsewhere))

    def _known(self, value: Tensor, axis: int) -> Flow:
        """Return the flow of an activation; one that could not be followed gets new channels, which are fixed."""
        flow = self._flow(value)
        if flow is None:
            axis %= value.ndim
            flow = Flow(axis, self.labels.fresh(value.shape[axis]))
            self.labels.fix(flow.ids, f"{self.layer} reads channels that cannot be followed")
        return flow

    def _count_resampling(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if name in POOLED:
            self._count(self._known(args[0], 1), args[0], POOLED[name])
        elif name == "interpolate":
            mode = kwargs.get("mode", args[3] if len(args) > 3 else "nearest")
            self._count(self._known(args[0], 1), out, INTERPOLATED.get(mode, 0))

    def _elementwise(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Relate all operands of an operation that leaves the channel axis in place."""
        operands = [leaf for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, Tensor)]
        flows = [(operand, flow) for operand in operands if (flow := self._flow(operand)) is not None]
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not flows:
            return
        lead = max((flow for _, flow in flows), key=lambda flow: len(flow.ids))
        ndim = next(operand.ndim for operand, flow in flows if flow is lead)
        if any(result.ndim != ndim or result.shape[lead.axis] != len(lead.ids) for result in outs):
            return self._lose(name, [args, kwargs])
        for operand, flow in flows:
            if flow.axis + ndim - operand.ndim == lead.axis and len(flow.ids) == len(lead.ids):
                self.labels.unite(lead.ids, flow.ids)
            elif flow is not lead:
                self._lose(name, [args, kwargs])
        for operand in operands:
            parameter = self._name(operand)
            axis = lead.axis - (ndim - operand.ndim)  # broadcasting aligns axes from the right
            if parameter and 0 <= axis < operand.ndim and operand.shape[axis] == len(lead.ids):
                self.labels.unite(lead.ids, self.axes[parameter][axis])
        for result in outs:
            self._set(result, lead)

    def _reshape(self, name: str, args: Any, _kwargs: Any, out: Tensor) -> None:
        before, flow = args[0].shape, self._flow(args[0])
        if flow is None:
            return
        after = reshaped(name, flow, before, out.shape)
        if after is None:
            return self._lose(f"{name} from {tuple(before)} to {tuple(out.shape)}", args)
        self._set(out, after)

    def _reduction(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value, flow = args[0], self._flow(args[0])
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        if flow is None:
            return
        after = reduced(flow, value.ndim, dims, keep)
        if after is None:
            return self._lose(f"{name} over channels", args)
        self._set(out, after)

    def _permutation(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        flow = self._flow(args[0])
        if flow is None:
            return
        self._set(out, permuted(name, flow, args, kwargs))

    def _concatenation(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        parts = args[0] if args else kwargs["tensors"]
        axis = kwargs.get("dim", args[1] if len(args) > 1 else 0) % out.ndim
        flows = [self._flow(part) for part in parts]
        if any(flow is None or flow.axis != axis for flow in flows):
            same = [flow for flow in flows if flow is not None]
            if len(same) == len(parts) and len({(f.axis, len(f.ids)) for f in same}) == 1:
                for flow in same[1:]:
                    self.labels.unite(same[0].ids, flow.ids)
                return self._set(out, same[0])
            return self._lose(name, parts)
        self._set(out, Flow(axis, np.concatenate([flow.ids for flow in flows if flow is not None])))

    def _part(self, name: str, args: Any, _kwargs: Any, out: Any) -> None:
        """Keep the channels of parts along another axis; lose those of parts along the channel axis.

        A narrow network would cut the channel axis into other parts.
        """
        value, flow = args[0], self._flow(args[0])
        if flow is None:
            return
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if all(part.ndim == value.ndim and part.shape[flow.axis] == len(flow.ids) for part in outs):
            for part in outs:
                self._set(part, flow)
        else:
            self._lose(f"{name} of channels", args)

    def _uncountable(self, name: str, args: Any, kwargs: Any, _out: Any) -> None:
        self._lose(name, [args, kwargs])


def record_forward(recorder: Recorder, model: nn.Module, image: Tensor) -> Recorder:
    """Run one forward pass under a recorder of the same network, and return the recorder.

    Args:
        model: in eval mode, on the meta device.
        image: shape (N, C, H, W), on the meta device.
    """
    handles = []
    for name, module in model.named_modules():

        def before(_module: nn.Module, _args: Any, name: str = name) -> None:
            recorder.enter_layer(name)

        def after(_module: nn.Module, _args: Any, _out: Any) -> None:
            recorder.leave_layer()

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        recorder.enter(image, "input image")
        with recorder:
            recorder.leave(model(image), "network output")
    finally:
        for handle in handles:
            handle.remove()
    return recorder
