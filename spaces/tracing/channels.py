"""Channels: the groups, axis maps and cost model that follow from a recording and its channel labels."""

import dataclasses
from collections import defaultdict
from fractions import Fraction
from math import prod

import numpy as np

from spaces.cost import ONE, CostModel, Form, Peak, Polynomial, PolynomialBuilder
from spaces.errors import TraceError
from spaces.groups import ChannelGroup
from spaces.slicing.slicer import KeptIds
from spaces.space import FixedLayer, LayerWeights, SearchSpace, SizeName
from spaces.tracing.cells import Cells, cells_of
from spaces.tracing.labels import ChannelLabels, Ids, signatures
from spaces.tracing.operations import CountedWeight
from spaces.tracing.recording import Recorder


class Channels:
    """Builds groups, axis maps and the cost model from a recording and its channel labels."""

    def __init__(self, recorder: Recorder, labels: ChannelLabels) -> None:
        self._recorder = recorder
        self._components = labels.components()
        self._reasons = labels.fixed_reasons(self._components)
        self._parted = [
            self._components[ids].reshape(layer.groups, -1)
            for layer in recorder.grouped
            for ids in (layer.inputs, layer.outputs)
        ]
        self._axes = {
            (name, dim): self._components[ids] for name, dims in recorder.axes.items() for dim, ids in dims.items()
        }
        self._activations = [
            self._components[operation.ids]
            for operation in recorder.counted
            if not isinstance(operation, CountedWeight)
        ]
        self._id_of = np.full(int(self._components.max(initial=-1)) + 1, -1, dtype=np.int64)

    def groups(self) -> list[ChannelGroup]:
        """Return the groups in the order of the layers that write them."""
        cells = cells_of(signatures([*self._axes.values(), *self._activations], len(self._id_of)), self._parted)
        written = [self._axes[name, 0] for name in self._recorder.producers]
        all_written = np.concatenate([np.zeros(0, dtype=np.int64), *written])
        groups: list[ChannelGroup] = []
        start = 0
        taken: dict[str, int] = defaultdict(int)
        for name, ids in zip(self._recorder.producers, written, strict=True):
            for number in dict.fromkeys(cells.group_of[ids[self._id_of[ids] < 0]].tolist()):
                channels = cells.ordered(number, all_written)
                self._id_of[channels] = np.arange(start, start + len(channels))
                layer = _layer_of(name)
                suffix = f"#{taken[layer]}" if taken[layer] else ""
                taken[layer] += 1
                fixed = self._problem(channels, cells, number)
                parts = 1 if fixed else cells.cells_in(number)
                width = len(channels)
                groups.append(ChannelGroup(layer + suffix, width, 1, width, parts, parts, start=start, fixed=fixed))
                start += width
        producers, consumers = self._layers_by_group(groups, 0), self._layers_by_group(groups, 1)
        return [
            dataclasses.replace(group, producers=tuple(writing), consumers=tuple(reading))
            for group, writing, reading in zip(groups, producers, consumers, strict=True)
        ]

    def _layers_by_group(self, groups: list[ChannelGroup], dim: int) -> list[list[str]]:
        """Return for every group the layers whose weights have its channels along a dimension, as they are executed."""
        starts = np.array([group.start for group in groups], dtype=np.int64)
        layers: list[list[str]] = [[] for _ in groups]
        for name in self._recorder.producers:
            ids = self._id_of[self._axes[name, dim]]
            for number in np.unique(np.searchsorted(starts, ids[ids >= 0], side="right") - 1).tolist():
                layers[number].append(_layer_of(name))
        return layers

    def _problem(self, channels: Ids, cells: Cells, number: int) -> str:
        """Return the reason why these channels, a group of that number, cannot be cut; empty where they can."""
        members = cells.members(number)
        for channel in (*channels.tolist(), *members.tolist()):
            if channel in self._reasons:
                return self._reasons[channel]
        if len(members) > len(channels):
            return "a layer splits these channels into equal groups together with some that no layer writes"
        if len(channels) == 1:
            return "a single channel"
        if cells.cells_in(number) == len(channels):
            return "every part that must stay as large as the others holds a single one of these channels"
        return ""

    def layers(self) -> dict[str, LayerWeights]:
        """Return the layers by name with their parameters, in the order of these in the network."""
        recorder = self._recorder
        return {
            _layer_of(name): LayerWeights(
                name,
                recorder.biases.get(name, ""),
                transposed=name in recorder.transposed,
                computed=name in recorder.computed,
                depthwise=name in recorder.depthwise,
                stride=recorder.strides.get(name, 1),
            )
            for name in recorder.parameters
            if name in recorder.producers
        }

    def sizes(self) -> dict[SizeName, Ids]:
        """Return the sizes that modules hold in attributes, with the ids of the channels that they count."""
        return {name: self._id_of[self._components[ids]] for name, ids in self._recorder.sizes.items()}

    def axes(self) -> dict[str, dict[int, Ids]]:
        """Return tensor name -> dimension -> channel id at every index, for the dimensions that hold channels."""
        maps: dict[str, dict[int, Ids]] = defaultdict(dict)
        shared: dict[bytes, Ids] = {}  # equal maps share one array, so that surgery evaluates it once
        for (name, dim), channels in self._axes.items():
            ids = self._id_of[channels]
            if (ids >= 0).any():
                maps[name][dim] = shared.setdefault(ids.tobytes(), ids)
        return dict(maps)

    def _form(self, channels: Ids, groups: list[ChannelGroup]) -> Form:
        """Return the length of an axis as a function of the widths."""
        ids = self._id_of[channels]
        starts = np.array([group.start for group in groups], dtype=np.int64)
        members = np.searchsorted(starts, ids[ids >= 0], side="right") - 1
        counts = np.bincount(members, minlength=len(groups))
        coefficients = [(i, Fraction(count, groups[i].width)) for i, count in enumerate(counts.tolist()) if count]
        return Form(int((ids < 0).sum()), tuple(coefficients))

    def cost_model(self, groups: list[ChannelGroup], dense_flops: int) -> CostModel:
        """Return FLOPs, parameters, activations and the bytes of all tensors as functions of the widths of all groups.

        Args:
            dense_flops: fvcore's count of the dense network. What operations that are not modelled add to it is
                taken to be constant.
        """
        flops, params = PolynomialBuilder(len(groups)), PolynomialBuilder(len(groups))
        grouped = {layer.name: layer.groups for layer in self._recorder.grouped}
        forms = {key: self._form(channels, groups) for key, channels in self._axes.items()}
        sizes: dict[str, tuple[int, Form, Form, int]] = {}
        for name, dims in self._recorder.axes.items():
            lengths = [forms[name, dim] for dim in dims]
            varying = [form for form in lengths if form.coefficients] + [Form(1), Form(1)]
            constant = prod(int(form.constant) for form in lengths if not form.coefficients)
            if len(varying) > 4:
                raise TraceError(f"parameter {name!r} varies along more than two dimensions")
            sizes[name] = (constant, varying[0], varying[1], grouped.get(name, 1))
        for name in self._recorder.parameters:
            params.add(*sizes[name])
        stored = PolynomialBuilder(len(groups))
        for name, element in self._recorder.element_sizes.items():
            constant, left, right, divisor = sizes[name]
            stored.add(constant * element, left, right, divisor)
        activation = iter(self._activations)
        for operation in self._recorder.counted:
            if isinstance(operation, CountedWeight):
                constant, left, right, divisor = sizes[operation.weight]
                flops.add(constant * operation.times, left, right, divisor)
            else:
                flops.add(operation.times, self._form(next(activation), groups))
        names, full = [group.name for group in groups], [group.width for group in groups]
        modelled = flops.build()(np.array([1, *full], dtype=object), exact=False)
        flops.add(dense_flops - modelled, ONE)
        quantities: dict[str, Polynomial | Peak] = {
            "flops": flops.build(),
            "params": params.build(),
            "activations": self._peak(groups),
        }
        return CostModel(names, full, quantities, stored.build())

    def _peak(self, groups: list[ChannelGroup]) -> Peak:
        """Return the peak of the live tensors of the recorded pass."""
        lives = self._recorder.lives
        if lives is None:
            raise ValueError("the recorder has followed no tensors")
        forms: list[Form] = []
        for number, size in enumerate(lives.sizes):
            ids = self._recorder.channels_of.get(number)
            form = Form(size) if ids is None else self._form(self._components[ids], groups)
            forms.append(form if ids is None else form.times(Fraction(size, len(ids))))
        return Peak.of([Form.sum(forms[number] for number in live) for live in lives.live()], len(groups))

    def fixed_layers(self, groups: list[ChannelGroup]) -> list[FixedLayer]:
        """List the layers of which no output channel can vary, with the reason."""
        varying = {layer for group in groups if not group.fixed for layer in group.producers}
        reasons = {layer: group.fixed for group in groups if group.fixed for layer in group.producers}
        weights = self.layers()
        return [
            FixedLayer(layer, len(self._axes[weights[layer].weight, 0]), reason)
            for layer, reason in reasons.items()
            if layer not in varying
        ]

    def vary(self, ids: Ids, space: SearchSpace) -> bool:
        """Return whether some of these channels belong to a variable group of a space that `groups` gave."""
        channels = self._id_of[self._components[ids]]
        return any(bool(((channels >= g.start) & (channels < g.start + g.width)).any()) for g in space.variable)

    def flops_by_layer(self, kept: KeptIds) -> dict[str, int]:
        """Return the modelled FLOPs of every layer and all layers inside it, with the kept channels alone."""
        flops: dict[str, int] = defaultdict(int)
        grouped = {layer.name: layer.groups for layer in self._recorder.grouped}
        activation = iter(self._activations)
        for operation in self._recorder.counted:
            if isinstance(operation, CountedWeight):
                dims = self._recorder.axes[operation.weight]
                lengths = [int(kept[self._id_of[self._axes[operation.weight, dim]]].sum()) for dim in dims]
                amount = operation.times * prod(lengths) // grouped.get(operation.weight, 1)
            else:
                amount = operation.times * int(kept[self._id_of[next(activation)]].sum())
            parts = operation.layer.split(".") if operation.layer else []
            for depth in range(len(parts) + 1):
                flops[".".join(parts[:depth])] += amount
        return flops


def _layer_of(weight: str) -> str:
    """Return the name of the layer of a weight: its module, or the weight itself where it has another name."""
    return weight.removesuffix(".weight")
