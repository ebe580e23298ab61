"""How channels pass through functions that take weights: convolutions, linear layers, PReLU and normalisations."""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from spaces.tracing.flows import ChannelFlows
from spaces.tracing.labels import Ids
from spaces.tracing.operations import NORMALISATIONS, OVER_CHANNELS, Flow, GroupedLayer, argument


class WeightFollower(ChannelFlows):
    """Relates the channels of activations to the axes of the weights that read and write them."""

    def _layer_weight(self, weight: Any, transposed: bool = False) -> str | None:
        """Return the name of a layer's weight, the parameter that is the argument or from which that is computed.

        Returns:
            None for any other.
        """
        own = self._name(weight)
        origin = own or self._origins.get(weight)
        if origin not in self.parameters:
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

    def _consume(self, value: Tensor, axis: int, ids: Ids) -> None:
        """Relate the channels of an activation to an axis of a weight."""
        flow = self._flow(value)
        if flow is not None and flow.axis == axis % value.ndim and len(flow.ids) == len(ids):
            self.labels.unite(flow.ids, ids)
            return
        self._lose(f"{self._text} over another axis than that of the channels", [value])
        self.labels.fix(ids, f"{self.layer or 'the network'} reads channels that cannot be followed")

    def _convolution(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
        groups = int(argument(args, kwargs, 6, "groups", 1))
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
        self._write(weight_name, argument(args, kwargs, 2, "bias"), out, 1)

    def _transposed_convolution(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
        groups = int(argument(args, kwargs, 6, "groups", 1))
        depthwise = groups == value.shape[1] > 1 == weight.shape[1]
        if groups > 1 and not depthwise:
            return self._lose(f"{name} of {groups} groups", args)
        weight_name = self._layer_weight(weight, transposed=not depthwise)
        if weight_name is None:
            return self._lose(f"{name} with a computed weight", args)
        if (weight_name in self.transposed) == depthwise:
            return self._lose_both_ways(weight_name, args, kwargs)
        self._count_weight(weight_name, prod(value.shape[2:]))
        strides = argument(args, kwargs, 3, "stride", 1)
        self.strides[weight_name] = int(strides) ** (value.ndim - 2) if isinstance(strides, int) else prod(strides)
        if depthwise:
            self._read_depthwise(value, groups, weight_name)
        else:
            self._read(value, 1, weight_name)
        self._write(weight_name, argument(args, kwargs, 2, "bias"), out, 1)

    def _linear(self, _name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
        weight_name = self._layer_weight(weight)
        if weight_name is None:
            return self._lose("linear with a weight that is no layer's", [args, kwargs])
        if weight_name in self.transposed:
            return self._lose_both_ways(weight_name, args, kwargs)
        flow = self._flow(value)
        if flow is not None and flow.axis < value.ndim - 1:
            return self._linear_over_positions(weight_name, flow, args, kwargs, out)
        self._count_weight(weight_name, prod(out.shape[:-1]))
        self._read(value, -1, weight_name)
        self._write(weight_name, argument(args, kwargs, 2, "bias"), out, out.ndim - 1)

    def _linear_over_positions(self, weight: str, flow: Flow, args: Any, kwargs: Any, out: Tensor) -> None:
        """Follow channels past a layer that mixes positions, each channel alike; positions are never cut."""
        for ids in self.axes[weight].values():
            self.labels.fix(ids, f"{self.layer or 'the network'} maps positions, which no width counts")
        bias = self._name(argument(args, kwargs, 2, "bias"))
        if bias is not None:
            self.labels.unite(self.axes[weight][0], self.axes[bias][0])
            self.biases.setdefault(weight, bias)
        self._count(flow, out, len(self.axes[weight][1]))
        self._set(out, flow)

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
        value, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
        flow, kernel = self._flow(value), self._name(weight)
        if flow is None or not depthwise or flow.axis != 1:
            if kernel is not None:
                for ids in self.axes[kernel].values():
                    self.labels.fix(ids, f"{name} in {self.layer or 'the network'} takes {kernel}, which is no layer's")
            return self._lose(f"{name} with {f'{kernel}, which is no layer' if kernel else 'a computed weight'}", args)
        after = Flow(1, np.repeat(flow.ids, len(weight) // len(flow.ids)))
        self._count(after, out, prod(weight.shape[1:]))
        self._note_size(argument(args, kwargs, 6, "groups", 1), flow.ids)
        for tensor in (weight, argument(args, kwargs, 2, "bias")):
            if isinstance(tensor, Tensor) and self._name(tensor) is not None:
                self.labels.unite(after.ids, self.axes[self._name(tensor) or ""][0])
        self._set(out, after)

    def _prelu(self, _name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
        flow, slopes = self._flow(value), self._flow(weight)
        if flow is None:
            return
        if slopes is not None and flow.axis == 1:  # a single slope serves all channels
            self.labels.unite(flow.ids, slopes.ids)
        elif slopes is not None:
            return self._lose("prelu over another axis than that of the channels", [args, kwargs])
        self._set(out, flow)

    def _normalisation(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        value = argument(args, kwargs, 0, "input")
        flow, origin = self._flow(value), self._origins.get(value)
        per_element = _normalisation_flops(name, args, kwargs)
        if flow is None:
            if origin is not None:  # of a weight, e.g. to standardise it
                self._count_weight(origin, per_element)
            return
        first = 1
        if name in ("layer_norm", "rms_norm"):
            first = value.ndim - len(argument(args, kwargs, 1, "normalized_shape"))
        inside = flow.axis >= first if name in ("layer_norm", "rms_norm") else flow.axis == 1
        if not inside and name not in ("layer_norm", "rms_norm"):
            return self._lose(f"{name} over another axis than that of the channels", [args, kwargs])
        for tensor in [*args[1:], *kwargs.values()] if inside else ():
            parameter = self._name(tensor)
            if parameter is not None:
                self.labels.unite(flow.ids, self.axes[parameter][flow.axis - first])
        if inside and name in ("layer_norm", "rms_norm"):
            self._note_size(argument(args, kwargs, 1, "normalized_shape")[flow.axis - first], flow.ids)
        self._count(flow, value, per_element)
        self._normalises = inside and name in OVER_CHANNELS
        if name == "group_norm":
            groups = int(argument(args, kwargs, 1, "num_groups"))
            self.grouped.append(GroupedLayer(self.layer, groups, flow.ids, flow.ids))
        self._set(out, flow)


def _normalisation_flops(name: str, args: Any, kwargs: Mapping[str, Any]) -> int:
    """Return the FLOPs per element of a normalisation, as fvcore counts them."""
    position = {"batch_norm": 3, "layer_norm": 2, "group_norm": 2, "instance_norm": 3, "rms_norm": 2}[name]
    affine = argument(args, kwargs, position, "weight") is not None
    by_batch = name == "batch_norm" and argument(args, kwargs, 5, "training", False)
    whole = 5 if by_batch else NORMALISATIONS[name]
    return whole - (whole > 0 and not affine)
