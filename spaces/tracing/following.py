"""How channels pass through the functions of a forward pass: what each of them relates, moves, counts or fixes.

The channel ids of each activation are known, and layers, additions, products, concatenations and moves of elements
relate these ids. An operation that cannot be followed fixes the channels that enter it, and its name is the reason. An
operation that is not known is taken to treat every channel alike: the proof (`spaces.tracing.proof`) finds those that
do not.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from spaces.space import SizeName
from spaces.tracing.axes import Moved, equal_parts, moved, reduced, reduced_axes
from spaces.tracing.labels import ChannelLabels, Ids
from spaces.tracing.operations import (
    AT_PLACES,
    CONCATENATIONS,
    CONVOLUTIONS,
    INTERPOLATED,
    MEANS,
    MIXING,
    MOVES,
    NORMALISATIONS,
    OVER_CHANNELS,
    OVER_WEIGHTS,
    POOLED,
    REDUCTIONS,
    SHUFFLES,
    TRANSPOSED,
    CountedActivation,
    CountedWeight,
    Flow,
    GroupedLayer,
)
from spaces.tracing.sizes import WrittenSize, written_bounds, written_parts


class ChannelFollower:
    """Follows channels through one torch function after another.

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
        self._handlers = self._table()

    def _table(self) -> Mapping[str, Callable[..., None]]:
        table: dict[str, Callable[..., None]] = dict.fromkeys(CONVOLUTIONS, self._convolution)
        table |= dict.fromkeys(NORMALISATIONS, self._normalisation)
        table |= dict.fromkeys(REDUCTIONS, self._reduction)
        table |= dict.fromkeys(CONCATENATIONS, self._concatenation)
        table |= dict.fromkeys(TRANSPOSED, self._transposed_convolution)
        table |= dict.fromkeys(MIXING, self._mixing)
        return table | {"linear": self._linear, "prelu": self._prelu, "stack": self._stack}

    @property
    def layer(self) -> str:
        """Name of the innermost layer that is being computed; empty outside of all."""
        return self._layers[-1] if self._layers else ""

    def _follow(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any, out: Any) -> None:
        plain = name if name.startswith("__") else name.removesuffix("_")
        handler = self._handlers.get(plain)
        if handler is not None:
            handler(plain, args, kwargs, out)
        elif plain in MOVES:
            if plain in SHUFFLES:
                self._tie_blocks(_argument(args, kwargs, 0, "input"), int(_argument(args, kwargs, 1, "groups")))
            self._move(func, plain, args, kwargs, out)
        else:
            self._count_resampling(plain, args, kwargs, out)
            self._elementwise(plain, args, kwargs, out)
        self._note_origin(plain, args, kwargs, out)

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

    def _origin(self, value: Tensor) -> str | None:
        """Return the parameter of several axes that a tensor is, or is computed from."""
        name = self._name(value)
        several = name is not None and value.ndim > 1 and self._flow(value) is None
        origin: str | None = name if several else self._origins.get(value)
        return origin

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

    def _lose(self, text: str, args: Any) -> None:
        """Fix every channel that enters an operation which cannot be followed."""
        reason = f"{text} in {self.layer or 'the network'} cannot be followed"
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
        self._lose(f"{self._text} over another axis than that of the channels", [value])
        self.labels.fix(ids, f"{self.layer or 'the network'} reads channels that cannot be followed")

    def _layer_weight(self, weight: Any, transposed: bool = False) -> str | None:
        """Return the name of a layer's weight; None for any other.

        It is a parameter that is the argument itself, or the weight of a module from which the argument is computed.
        """
        own = self._name(weight)
        origin = own or self._origins.get(weight)
        if origin not in self.parameters or (own is None and not origin.endswith(".weight")):
            return None
        if own is None and (transposed or tuple(weight.shape[:1]) != (len(self.axes[origin][0]),)):
            return None
        if len(weight.shape) != len(self.axes[origin]):
            return None
        if origin not in self.producers:
            self.producers.append(origin)
            if transposed:
                self._turn(origin)
        if own is None:
            self.computed.add(origin)
        self._normalises = weight in self._standardised
        return origin

    def _turn(self, weight: str) -> None:
        """Let axis 0 of a weight, which holds its inputs first, be that of its outputs, and axis 1 that of its inputs.

        The weight of a transposed depthwise convolution with one filter per channel is as that of any other.
        """
        inputs, outputs, *rest = self.axes[weight].values()
        self.axes[weight] = dict(enumerate([outputs, inputs, *rest]))
        self.transposed.add(weight)

    def _convolution(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
        groups = int(_argument(args, kwargs, 6, "groups", 1))
        depthwise = groups == value.shape[1] and (groups > 1 or weight.shape[0] == 1 == value.shape[1])
        weight_name = self._layer_weight(weight)
        if weight_name is None:
            return self._bare_convolution(name, args, kwargs, out, depthwise)
        if weight_name in self.transposed:
            return self._lose_both_ways(weight_name, args, kwargs)
        self._count_weight(weight_name, prod(out.shape[2:]))
        if depthwise:
            self._read_depthwise(value, groups, weight_name)
        elif groups == 1:
            self._read(value, 1, weight_name)
        else:
            if len(self.axes[weight_name][1]) != value.shape[1]:
                self.axes[weight_name][1] = self.labels.fresh(value.shape[1])
            self._read(value, 1, weight_name)
            self.grouped.append(GroupedLayer(weight_name, groups, self.axes[weight_name][1], self.axes[weight_name][0]))
        self._write(weight_name, _argument(args, kwargs, 2, "bias"), out, 1)

    def _transposed_convolution(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
        groups = int(_argument(args, kwargs, 6, "groups", 1))
        depthwise = groups == value.shape[1] > 1 == weight.shape[1]
        if groups > 1 and not depthwise:
            return self._lose(f"{name} of {groups} groups", args)
        weight_name = self._layer_weight(weight, transposed=not depthwise)
        if weight_name is None:
            return self._lose(f"{name} with a computed weight", args)
        if (weight_name in self.transposed) == depthwise:
            return self._lose_both_ways(weight_name, args, kwargs)
        self._count_weight(weight_name, prod(value.shape[2:]))
        strides = _argument(args, kwargs, 3, "stride", 1)
        self.strides[weight_name] = int(strides) ** (value.ndim - 2) if isinstance(strides, int) else prod(strides)
        if depthwise:
            self._read_depthwise(value, groups, weight_name)
        else:
            self._read(value, 1, weight_name)
        self._write(weight_name, _argument(args, kwargs, 2, "bias"), out, 1)

    def _read(self, value: Tensor, axis: int, weight: str) -> None:
        """Relate an activation to the inputs of a weight, which sums over them."""
        self._consume(value, axis, self.axes[weight][1])
        self._reads = self._flow(value)

    def _read_depthwise(self, value: Tensor, channels: int, weight: str) -> None:
        self.depthwise.add(weight)
        outputs = self.axes[weight][0]
        for position in range(len(outputs) // channels):
            self._consume(value, 1, outputs[position :: len(outputs) // channels])

    def _write(self, weight: str, bias: Any, out: Tensor, axis: int) -> None:
        """Give the output of a layer the channels of its weight, and tie its bias to them."""
        outputs = self.axes[weight][0]
        flow, name = self._flow(bias), self._name(bias)
        if flow is not None:
            self.labels.unite(outputs, flow.ids)
        if name is not None:
            self.biases.setdefault(weight, name)
        self._set(out, Flow(axis, outputs))

    def _lose_both_ways(self, weight: str, args: Any, kwargs: Any) -> None:
        """Fix the channels of a weight that a convolution and a transposed one use, as a tied decoder does."""
        for ids in self.axes[weight].values():
            self.labels.fix(ids, f"{weight} is the weight of a convolution and of a transposed one")
        self._lose(f"{self._text} with a weight that is used both ways", [args, kwargs])

    def _bare_convolution(self, name: str, args: Any, kwargs: Any, out: Tensor, depthwise: bool) -> None:
        """Follow a convolution with a buffer or a computed weight: a filter per channel is followed, others are not."""
        value, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
        flow, kernel = self._flow(value), self._name(weight)
        if flow is None or not depthwise or len(flow.ids) != len(weight):
            if kernel is not None:
                for ids in self.axes[kernel].values():
                    self.labels.fix(ids, f"{name} in {self.layer or 'the network'} takes {kernel}, which is no layer's")
            return self._lose(f"{name} with {f'{kernel}, which is no layer' if kernel else 'a computed weight'}", args)
        self._count(flow, out, prod(weight.shape[1:]))
        self._note_size(_argument(args, kwargs, 6, "groups", 1), flow.ids)
        for tensor in (weight, _argument(args, kwargs, 2, "bias")):
            if isinstance(tensor, Tensor) and self._name(tensor) is not None:
                self.labels.unite(flow.ids, self.axes[self._name(tensor) or ""][0])
        self._set(out, flow)

    def _linear(self, _name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
        weight_name = self._layer_weight(weight)
        if weight_name is None:
            return self._lose("linear with a weight that is no layer's", [args, kwargs])
        if weight_name in self.transposed:
            return self._lose_both_ways(weight_name, args, kwargs)
        self._count_weight(weight_name, prod(out.shape[:-1]))
        self._read(value, -1, weight_name)
        self._write(weight_name, _argument(args, kwargs, 2, "bias"), out, out.ndim - 1)

    def _prelu(self, _name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
        flow, slopes = self._flow(value), self._flow(weight)
        if flow is None:
            return
        if slopes is not None and flow.axis == 1:  # a single slope serves all channels
            self.labels.unite(flow.ids, slopes.ids)
        elif slopes is not None:
            return self._lose("prelu over another axis than that of the channels", [args, kwargs])
        self._set(out, flow)

    def _normalisation(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value = _argument(args, kwargs, 0, "input")
        flow, origin = self._flow(value), self._origins.get(value)
        per_element = _normalisation_flops(name, args, kwargs)
        if flow is None:
            if origin is not None:  # of a weight, e.g. to standardise it
                self._count_weight(origin, per_element)
            return
        first = 1
        if name in ("layer_norm", "rms_norm"):
            first = value.ndim - len(_argument(args, kwargs, 1, "normalized_shape"))
        inside = flow.axis >= first if name in ("layer_norm", "rms_norm") else flow.axis == 1
        if not inside and name not in ("layer_norm", "rms_norm"):
            return self._lose(f"{name} over another axis than that of the channels", [args, kwargs])
        for tensor in [*args[1:], *kwargs.values()] if inside else ():
            parameter = self._name(tensor)
            if parameter is not None:
                self.labels.unite(flow.ids, self.axes[parameter][flow.axis - first])
        if inside and name in ("layer_norm", "rms_norm"):
            self._note_size(_argument(args, kwargs, 1, "normalized_shape")[flow.axis - first], flow.ids)
        self._count(flow, value, per_element)
        self._normalises = inside and name in OVER_CHANNELS
        if name == "group_norm":
            groups = int(_argument(args, kwargs, 1, "num_groups"))
            self.grouped.append(GroupedLayer(self.layer, groups, flow.ids, flow.ids))
        self._set(out, flow)

    def _count(self, flow: Flow, value: Tensor, per_element: int) -> None:
        elsewhere = prod(size for axis, size in enumerate(value.shape) if axis != flow.axis)
        if self.counting:
            self.counted.append(CountedActivation(flow.ids, per_element * elsewhere, self.layer))

    def _count_weight(self, weight: str, times: int) -> None:
        if self.counting:
            self.counted.append(CountedWeight(weight, times, self.layer))

    def _count_resampling(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        flow = self._flow(args[0]) if args else None
        if flow is None:
            return
        if name in POOLED:
            self._count(flow, args[0], POOLED[name])
        elif name == "interpolate":
            self._count(flow, out, INTERPOLATED.get(_argument(args, kwargs, 3, "mode", "nearest"), 0))

    def _elementwise(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Relate all operands of an operation that leaves the channel axis in place."""
        operands = [leaf for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, Tensor)]
        flows = [(operand, flow) for operand in operands if (flow := self._flow(operand)) is not None]
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not flows:
            return
        lead = max((flow for _, flow in flows), key=lambda flow: len(flow.ids))
        ndim = next(operand.ndim for operand, flow in flows if flow is lead)
        grown = {result.ndim - ndim for result in outs}  # broadcasting adds axes on the left
        if len(grown) != 1 or min(grown) < 0:
            return self._lose(name, [args, kwargs])
        lead, ndim = Flow(lead.axis + min(grown), lead.ids), ndim + min(grown)
        if any(result.shape[lead.axis] != len(lead.ids) for result in outs):
            return self._lose(name, [args, kwargs])
        for operand, flow in flows:
            if flow.axis + ndim - operand.ndim == lead.axis and len(flow.ids) == len(lead.ids):
                self.labels.unite(lead.ids, flow.ids)
            elif len(flow.ids) > 1:
                return self._lose(name, [args, kwargs])
        for operand in operands:
            parameter = self._name(operand)
            axis = lead.axis - (ndim - operand.ndim)  # broadcasting aligns axes from the right
            if parameter and 0 <= axis < operand.ndim and operand.shape[axis] == len(lead.ids):
                self.labels.unite(lead.ids, self.axes[parameter][axis])
        for result in outs:
            self._set(result, lead)

    def _move(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any, out: Any) -> None:
        flows = [flow for leaf in tree_leaves([args, kwargs]) if (flow := self._flow(leaf)) is not None]
        if not flows:
            return
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if args and isinstance(args[0], Tensor) and len(outs) == 1:
            self._text = f"{name} from {tuple(args[0].shape)} to {tuple(outs[0].shape)}"
        after = moved(func, args, kwargs, self._flow)
        if after is None:
            return self._lose(self._text, [args, kwargs])
        parts = [one.flow.ids for one in after]
        if _at_written_places(name, args) and not all(np.array_equal(part, flows[0].ids) for part in parts):
            return self._lose(self._text, [args, kwargs])
        written = self._note_sizes(args, kwargs, flows[0], after, outs[0].ndim)
        if len(flows) == 1 and not written and any(len(part) < len(flows[0].ids) for part in parts):
            blocks = equal_parts(flows[0].ids, parts)
            if blocks == len(flows[0].ids):
                return self._lose(f"{name} into single channels", [args, kwargs])
            if blocks > 1:
                self.grouped.append(GroupedLayer(self.layer, blocks, flows[0].ids, flows[0].ids))
        for result, (flow, others) in zip(outs, after, strict=True):
            for line in others:
                self.labels.unite(flow.ids, line)
            self._set(result, flow)

    def _tie_blocks(self, value: Tensor, blocks: int) -> None:
        """Unite the channels that stand at one place of each of the equal blocks of an activation."""
        flow = self._flow(value)
        if flow is not None:
            for block in flow.ids.reshape(blocks, -1):
                self.labels.unite(flow.ids[: len(block)], block)

    def _note_sizes(self, args: Any, kwargs: Any, whole: Flow, after: Sequence[Moved], ndim: int) -> bool:
        """Note which channels the written sizes count that a move was given.

        Args:
            whole: the channels that enter.
            after: those of the tensors that it gives.
            ndim: dimensions of these tensors.

        Returns:
            Whether they part an axis at places of their own, so that its parts need not stay equally wide.
        """
        parts, axis = [one.flow.ids for one in after], after[0].flow.axis
        sizes = [value for value in [*args[1:], *kwargs.values()] if not isinstance(value, Tensor)]
        bounds = [pair for index in sizes for pair in written_bounds(index, whole.axis, whole.ids)]
        lists = [value for value in sizes if isinstance(value, tuple | list) and len(value) == len(parts) > 1]
        ends = [pair for sizes_of_parts in lists for pair in written_parts(sizes_of_parts, parts)]
        for size, ids in bounds + ends:
            self._note_size(size, ids)
        flat = tree_leaves(sizes) if not bounds + ends else []
        for size in flat[axis : axis + 1] if len(flat) == ndim else flat:  # a shape, or the length of all parts
            self._note_size(size, parts[0])
        return bool(bounds or ends)

    def _note_size(self, size: Any, ids: Ids) -> None:
        """Note that a number counts these channels, if it was written in an attribute and is as large."""
        counted = size.counted(ids) if isinstance(size, WrittenSize) else None
        if counted is not None:
            self.sizes.setdefault(size.name, counted)

    def _reduction(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        value = _argument(args, kwargs, 0, "input")
        flow, outs = self._flow(value), [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        dims = _argument(args, kwargs, 1, "dim", kwargs.get("axis"))
        if isinstance(dims, Tensor):  # the larger of two tensors
            return self._elementwise(name, args, kwargs, out)
        if flow is None:
            return
        over_channels = flow.axis in reduced_axes(value.ndim, dims)
        corrected = name in ("std", "var") and kwargs.get("correction", kwargs.get("unbiased", 1))
        if over_channels and len(outs) == 1 and name in MEANS | {"sum"} and not corrected:
            # A sum needs the removed channels at zero; a mean over fewer channels is another one, as in a layer norm.
            self._reads, self._normalises = (flow, False) if name == "sum" else (None, True)
            return
        after = reduced(flow, value.ndim, dims, outs[0].ndim == value.ndim)
        if over_channels or after.axis >= outs[0].ndim or outs[0].shape[after.axis] != len(after.ids):
            return self._lose(f"{name} over channels", [args, kwargs])
        for result in outs:
            self._set(result, after)

    def _same_channels(self, parts: Any) -> Flow | None:
        """Unite the channels of activations that stand side by side along another axis; None where they differ."""
        flows = [self._flow(part) for part in parts]
        known = [flow for flow in flows if flow is not None]
        if len(known) < len(parts) or len({(flow.axis, len(flow.ids)) for flow in known}) != 1:
            return None
        for flow in known[1:]:
            self.labels.unite(known[0].ids, flow.ids)
        return known[0]

    def _stack(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        parts = _argument(args, kwargs, 0, "tensors")
        axis = _argument(args, kwargs, 1, "dim", 0) % out.ndim
        flow = self._same_channels(parts)
        if flow is None:
            return self._lose(name, parts)
        self._set(out, Flow(flow.axis + (axis <= flow.axis), flow.ids))

    def _concatenation(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        parts = _argument(args, kwargs, 0, "tensors")
        axis = _argument(args, kwargs, 1, "dim", 0) % out.ndim
        flows = [self._flow(part) for part in parts]
        if all(flow is not None and flow.axis == axis for flow in flows):
            return self._set(out, Flow(axis, np.concatenate([flow.ids for flow in flows if flow is not None])))
        same = self._same_channels(parts)
        if same is None or same.axis == axis:
            return self._lose(name, parts)
        self._set(out, same)

    def _mixing(self, name: str, args: Any, kwargs: Any, _out: Any) -> None:
        self._lose(name, [args, kwargs])


def _at_written_places(name: str, args: Any) -> bool:
    """Tell whether a move takes elements from places that stay the same when the axis gets shorter.

    The proof may miss it: a narrow network that happens to keep the right channels gives the right values.
    """
    index = args[1] if name == "__getitem__" else ()
    return name in AT_PLACES or any(isinstance(entry, Tensor | list) for entry in tree_leaves(index, is_leaf=_is_list))


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _argument(args: Any, kwargs: Mapping[str, Any], position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _normalisation_flops(name: str, args: Any, kwargs: Mapping[str, Any]) -> int:
    """Return the FLOPs per element of a normalisation, as fvcore counts them."""
    position = {"batch_norm": 3, "layer_norm": 2, "group_norm": 2, "instance_norm": 3, "rms_norm": 2}[name]
    affine = _argument(args, kwargs, position, "weight") is not None
    by_batch = name == "batch_norm" and _argument(args, kwargs, 5, "training", False)
    whole = 5 if by_batch else NORMALISATIONS[name]
    return whole - (whole > 0 and not affine)
