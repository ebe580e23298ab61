"""How channels pass through the functions of a forward pass: what each of them relates, moves, counts or fixes.

The channel ids of each activation are known, and layers, additions, products, concatenations and moves of elements
relate these ids. An operation that cannot be followed fixes the channels that enter it, and its name is the reason. An
operation that is not known is taken to treat every channel alike: the proof (`spaces.tracing.proof`) finds those that
do not.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spaces.tracing.axes import Moved, equal_parts, moved, reduced, reduced_axes
from spaces.tracing.labels import ChannelLabels
from spaces.tracing.operations import (
    AT_PLACES,
    CONCATENATIONS,
    CONVOLUTIONS,
    INTERPOLATED,
    LIKE_ANOTHER,
    MEANS,
    MIXING,
    MOVES,
    NORMALISATIONS,
    NORMS,
    POOLED,
    REDUCTIONS,
    SAMPLED,
    SHUFFLES,
    TRANSPOSED,
    Flow,
    GroupedLayer,
    argument,
)
from spaces.tracing.sizes import written_bounds, written_parts
from spaces.tracing.weights import WeightFollower


class ChannelFollower(WeightFollower):
    """Follows channels through one torch function after another."""

    def __init__(self, model: nn.Module, labels: ChannelLabels) -> None:
        super().__init__(model, labels)
        self._handlers = self._table()

    def _table(self) -> Mapping[str, Callable[..., None]]:
        table: dict[str, Callable[..., None]] = dict.fromkeys(CONVOLUTIONS, self._convolution)
        table |= dict.fromkeys(NORMALISATIONS, self._normalisation)
        table |= dict.fromkeys(REDUCTIONS, self._reduction)
        table |= dict.fromkeys(CONCATENATIONS, self._concatenation)
        table |= dict.fromkeys(TRANSPOSED, self._transposed_convolution)
        table |= dict.fromkeys(MIXING, self._mixing)
        table |= {"linear": self._linear, "prelu": self._prelu, "stack": self._stack, "pad": self._padding}
        return table | {"glu": self._gate, "grid_sample": self._sampling}

    def _follow(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any, out: Any) -> None:
        plain = name if name.startswith("__") else name.removesuffix("_")
        handler = self._handlers.get(plain)
        if handler is not None:
            handler(plain, args, kwargs, out)
        elif plain in MOVES:
            self._tie(plain, args, kwargs)
            self._move(func, plain, args, kwargs, out)
        else:
            self._count_resampling(plain, args, kwargs, out)
            self._elementwise(plain, args, kwargs, out)
        self._note_origin(plain, args, kwargs, out)

    def _tie(self, name: str, args: Any, kwargs: Any) -> None:
        """Relate channels that a move needs equally many of."""
        if name in SHUFFLES:
            self._tie_blocks(argument(args, kwargs, 0, "input"), int(argument(args, kwargs, 1, "groups")))
        elif name in LIKE_ANOTHER:
            own, other = self._flow(args[0]), self._flow(argument(args, kwargs, 1, "other"))
            if own is not None and other is not None and len(own.ids) == len(other.ids):
                self.labels.unite(own.ids, other.ids)

    def _count_resampling(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        flow = self._flow(args[0]) if args else None
        if flow is None:
            return
        if name in POOLED:
            self._count(flow, args[0], POOLED[name])
        elif name == "interpolate":
            self._count(flow, out, INTERPOLATED.get(argument(args, kwargs, 3, "mode", "nearest"), 0))

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

    def _reduction(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        value = argument(args, kwargs, 0, "input")
        flow, outs = self._flow(value), [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        dims = argument(args, kwargs, 2 if name in NORMS else 1, "dim", kwargs.get("axis"))
        if isinstance(dims, Tensor):  # the larger of two tensors
            return self._elementwise(name, args, kwargs, out)
        if flow is None:
            return
        over_channels = flow.axis in reduced_axes(value.ndim, dims)
        corrected = name in ("std", "var") and kwargs.get("correction", kwargs.get("unbiased", 1))
        if over_channels and name in MEANS | {"sum"} and not corrected:
            # A sum needs the removed channels at zero; a mean over fewer channels is another one, as in a layer norm.
            self._reads, self._normalises = (flow, False) if name == "sum" else (None, True)
            return
        after = reduced(flow, value.ndim, dims, outs[0].ndim == value.ndim)
        if over_channels or after.axis >= outs[0].ndim or outs[0].shape[after.axis] != len(after.ids):
            return self._lose(f"{name} over channels", [args, kwargs])
        for result in outs:
            self._set(result, after)

    def _stack(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        parts = argument(args, kwargs, 0, "tensors")
        axis = argument(args, kwargs, 1, "dim", 0) % out.ndim
        flow = self._same_channels(parts)
        if flow is None:
            return self._lose(name, parts)
        self._set(out, Flow(flow.axis + (axis <= flow.axis), flow.ids))

    def _concatenation(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        parts = argument(args, kwargs, 0, "tensors")
        axis = argument(args, kwargs, 1, "dim", 0) % out.ndim
        flows = [self._flow(part) for part in parts]
        known = {flow.axis for flow in flows if flow is not None}
        if known == {axis}:
            ids = [
                self._constant(name, part.shape[axis]) if flow is None else flow.ids
                for part, flow in zip(parts, flows, strict=True)
            ]
            return self._set(out, Flow(axis, np.concatenate(ids)))
        same = self._same_channels(parts)
        if same is None or same.axis == axis:
            return self._lose(name, parts)
        self._set(out, same)

    def _padding(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value, sizes = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "pad")
        flow = self._flow(value)
        last = 2 * (value.ndim - 1 - flow.axis) if flow is not None else 0  # sizes begin with the last axis
        before, after = [*map(int, sizes), 0, 0][last : last + 2] if last < len(sizes) else (0, 0)
        if flow is None or not (before or after):
            return self._elementwise(name, args, kwargs, out)
        if min(before, after) < 0 or argument(args, kwargs, 2, "mode", "constant") != "constant":
            return self._lose(f"{name} over channels", [args, kwargs])
        parts = (self._constant(name, before), flow.ids, self._constant(name, after))
        self._set(out, Flow(flow.axis, np.concatenate(parts)))

    def _gate(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        """Follow a half of the channels that is weighed by the other half."""
        value = argument(args, kwargs, 0, "input")
        flow = self._flow(value)
        if flow is None or flow.axis != argument(args, kwargs, 1, "dim", -1) % value.ndim:
            return self._elementwise(name, args, kwargs, out)
        self._tie_blocks(value, 2)
        self._set(out, Flow(flow.axis, flow.ids[: len(flow.ids) // 2]))

    def _sampling(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        """Follow channels that are read at places; the channels of the places are x and y, and are never cut."""
        flow = self._flow(argument(args, kwargs, 0, "input"))
        self._lose(f"{name}, which takes places,", [argument(args, kwargs, 1, "grid")])
        if flow is not None:
            self._count(flow, out, SAMPLED)
            self._set(out, flow)

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
