"""Tracing: makes the SearchSpace of a network from an example image.

The network is observed twice: torch-pruning's DependencyGraph (through autograd) finds the layers that must be cut
together, and our own recording of a forward pass follows every channel to every axis that holds it and to every
operation that fvcore counts. Both add to one set of channel labels. The result is checked against fvcore's own count.
"""

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn

from spaces.cost import CostModel, Form, PolynomialBuilder
from spaces.counting import count_cost
from spaces.errors import TraceError
from spaces.groups import ChannelGroup
from spaces.space import FixedLayer, ModelSpec, SearchSpace, SpaceConfig
from spaces.tracing.labels import ChannelLabels, Ids, signatures
from spaces.tracing.operations import CountedWeight
from spaces.tracing.recording import Recorder, record_forward


def trace(
    model: nn.Module, example_input: Tensor, config: SpaceConfig | None = None, spec: ModelSpec | None = None
) -> SearchSpace:
    """Find the channel groups of a network, and its cost as a function of their widths.

    Args:
        model: any convolutional network; it is not changed.
        example_input: images, shape (N, C, H, W), of which only the shape of one matters.
        config: bounds of the space; None takes the defaults.
        spec: builds the network again; stored in the space.

    Raises:
        TraceError: the network cannot be followed; the message names the layer.
        SpaceError: a setting of `config` is not legal.
    """
    twin = _meta_twin(model)
    image = torch.empty((1, *example_input.shape[1:]), device="meta")
    labels = ChannelLabels()
    with torch.no_grad(), _explained("forward pass of one image"):
        recorder = record_forward(Recorder(twin, labels), twin, image)
    with _explained("torch-pruning's dependency graph", recorder.lost):
        _unite_dependencies(twin, image, recorder)
    channels = _Channels(recorder, labels)
    groups = channels.groups()
    if not any(not group.fixed for group in groups):
        reasons = "; ".join(sorted({f"{group.name}: {group.fixed}" for group in groups})[:3])
        raise TraceError(f"no layer of this network can be narrowed ({reasons}); see --model for networks that can")
    axes = channels.axes()
    cost_model = channels.cost_model(groups)
    space = SearchSpace(
        groups=tuple(groups),
        layers_fixed=tuple(channels.fixed_layers(groups)),
        cost_model=cost_model.fix({group.name: group.width for group in groups if group.fixed}),
        axes=axes,
        input_shape=(int(image.shape[1]), int(image.shape[2]), int(image.shape[3])),
        spec=spec,
        grouped={layer.name: layer.groups for layer in recorder.grouped if layer.name in axes},
    )
    _check_count(model, space)
    return space.restrict(config or SpaceConfig())


def _meta_twin(model: nn.Module) -> nn.Module:
    """Copy the structure of a network without its weights: parameters and buffers on the meta device, eval mode."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"))
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo).eval()


@contextmanager
def _explained(step: str, lost: Sequence[str] = ()) -> Iterator[None]:
    try:
        yield
    except TraceError:
        raise
    except Exception as error:  # the network may raise anything; the message must name the place
        text = " ".join(str(error).split())[:300]
        where = f"{lost[0]}; " if lost else ""
        raise TraceError(
            f"the network cannot be traced: {where}{step} failed with {type(error).__name__}: {text}"
        ) from error


def _unite_dependencies(twin: nn.Module, image: Tensor, recorder: Recorder) -> None:
    """Unite the channels that torch-pruning couples across layers."""
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(twin, image, verbose=False)
        names = {module: name for name, module in twin.named_modules()}
        parameters = {id(parameter): name for name, parameter in twin.named_parameters()}
        for group in graph.get_all_groups():
            root = _axis(group[0].dep, graph, names, parameters, recorder)
            for item in group.items:
                axis = _axis(item.dep, graph, names, parameters, recorder)
                if root is None or axis is None or axis is root:
                    continue
                indices = np.asarray(item.idxs, dtype=np.int64)
                roots = np.asarray(item.root_idxs, dtype=np.int64)
                if indices.max(initial=-1) >= len(axis):
                    raise TraceError(f"torch-pruning maps channels past the end of layer {item.dep.target.name!r}")
                recorder.labels.unite(root[roots], axis[indices])


def _axis(
    dependency: Any, graph: Any, names: Mapping[Any, str], parameters: Mapping[int, str], recorder: Recorder
) -> Ids | None:
    """Return the ids of the axis that a torch-pruning dependency cuts; None for operations without weights."""
    target = dependency.target.module
    if isinstance(target, nn.Parameter):
        return recorder.axes[parameters[id(target)]][dependency.target.pruning_dim]
    weight = f"{names[target]}.weight".removeprefix(".") if target in names else ""
    axes = recorder.axes.get(weight)
    if axes is None:
        return None
    reads = graph.is_in_channel_pruning_fn(dependency.handler) and not graph.is_out_channel_pruning_fn(
        dependency.handler
    )
    return axes[1] if reads and len(axes) > 1 else axes[0]


class _Channels:
    """Builds groups, axis maps and the cost model from a recording and its channel labels."""

    def __init__(self, recorder: Recorder, labels: ChannelLabels) -> None:
        self._recorder = recorder
        self._components = labels.components()
        self._reasons = labels.fixed_reasons(self._components)
        self._conv_groups = self._conv_groups_by_channel()
        self._axes = {
            (name, dim): self._components[ids] for name, dims in recorder.axes.items() for dim, ids in dims.items()
        }
        self._activations = [
            self._components[operation.ids]
            for operation in recorder.counted
            if not isinstance(operation, CountedWeight)
        ]
        self._id_of = np.full(int(self._components.max(initial=-1)) + 1, -1, dtype=np.int64)

    def _conv_groups_by_channel(self) -> dict[int, int]:
        """Return channel -> number of equal groups into which grouped layers split the axes that hold the channel."""
        conv_groups: dict[int, int] = {}
        for layer in self._recorder.grouped:
            for ids in (self._components[layer.inputs], self._components[layer.outputs]):
                for channel in np.unique(ids).tolist():
                    conv_groups[channel] = int(np.lcm(conv_groups.get(channel, 1), layer.groups))
        return conv_groups

    def groups(self) -> list[ChannelGroup]:
        """Return the groups in the order of the layers that write them."""
        axes = [*self._axes.values(), *self._activations]
        fingerprint = signatures(axes, len(self._id_of))
        groups: list[ChannelGroup] = []
        start = 0
        taken: dict[str, int] = defaultdict(int)
        for name in self._recorder.producers:
            written = self._axes[name, 0]
            fresh = written[self._id_of[written] < 0]
            _, first = np.unique(fresh, return_index=True)
            ordered = fresh[np.sort(first)]
            for signature in dict.fromkeys(fingerprint[ordered].tolist()):
                channels = ordered[fingerprint[ordered] == signature]
                self._id_of[channels] = np.arange(start, start + len(channels))
                layer = name.removesuffix(".weight")
                suffix = f"#{taken[layer]}" if taken[layer] else ""
                taken[layer] += 1
                groups.append(self._group(layer + suffix, channels, start))
                start += len(channels)
        return groups

    def _group(self, name: str, channels: Ids, start: int) -> ChannelGroup:
        width = len(channels)
        reason = next((self._reasons[c] for c in channels.tolist() if c in self._reasons), "")
        conv_groups = self._conv_groups.get(int(channels[0]), 1)
        if not reason and conv_groups > 1:
            reason = self._conv_group_problem(channels, conv_groups)
        if not reason and width == 1:
            reason = "a single channel"
        members = set(channels.tolist())
        producers = self._layers_on(members, 0)
        return ChannelGroup(
            name=name,
            width=width,
            floor=1,
            ceiling=width,
            divisor=1 if reason else conv_groups,
            conv_groups=1 if reason else conv_groups,
            producers=producers,
            consumers=self._layers_on(members, 1),
            start=start,
            fixed=reason,
        )

    def _layers_on(self, members: set[int], dim: int) -> tuple[str, ...]:
        return tuple(
            name.removesuffix(".weight")
            for name in self._recorder.producers
            if not members.isdisjoint(self._axes[name, dim].tolist())
        )

    def _conv_group_problem(self, channels: Ids, conv_groups: int) -> str:
        """Return the reason why equal groups of these channels cannot shrink together; empty where they can."""
        for layer in self._recorder.grouped:
            for ids in (self._components[layer.inputs], self._components[layer.outputs]):
                present = np.isin(ids, channels)
                if not present.any():
                    continue
                where = layer.name.removesuffix(".weight")
                if not present.all() or len(ids) != len(channels) or (ids != channels).any():
                    return f"{where} splits these channels together with others into {layer.groups} groups"
        if len(channels) % conv_groups:
            return f"{len(channels)} channels do not divide into {conv_groups} equal groups"
        return ""

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
        coefficients = [(i, int(count) // groups[i].width) for i, count in enumerate(counts.tolist()) if count]
        return Form(int((ids < 0).sum()), tuple(coefficients))

    def cost_model(self, groups: list[ChannelGroup]) -> CostModel:
        """Return FLOPs and parameters as polynomials of the widths of all groups."""
        flops, params = PolynomialBuilder(len(groups)), PolynomialBuilder(len(groups))
        grouped = {layer.name: layer.groups for layer in self._recorder.grouped}
        forms = {key: self._form(channels, groups) for key, channels in self._axes.items()}
        sizes: dict[str, tuple[int, Form, Form, int]] = {}
        for name, dims in self._recorder.axes.items():
            lengths = [forms[name, dim] for dim in dims]
            varying = [form for form in lengths if form.coefficients] + [Form(1), Form(1)]
            constant = int(np.prod([form.constant for form in lengths if not form.coefficients], dtype=np.int64))
            if len(varying) > 4:
                raise TraceError(f"parameter {name!r} varies along more than two dimensions")
            sizes[name] = (constant, varying[0], varying[1], grouped.get(name, 1))
        for name in self._recorder.parameters:
            params.add(*sizes[name])
        activation = iter(self._activations)
        for operation in self._recorder.counted:
            if isinstance(operation, CountedWeight):
                constant, left, right, divisor = sizes[operation.weight]
                flops.add(constant * operation.times, left, right, divisor)
            else:
                flops.add(operation.times, self._form(next(activation), groups))
        names, full = [group.name for group in groups], [group.width for group in groups]
        return CostModel(names, full, flops.build(), params.build())

    def fixed_layers(self, groups: list[ChannelGroup]) -> list[FixedLayer]:
        """List the layers of which no output channel can vary, with the reason."""
        varying = {layer for group in groups if not group.fixed for layer in group.producers}
        reasons = {layer: group.fixed for group in groups if group.fixed for layer in group.producers}
        return [
            FixedLayer(layer, len(self._axes[f"{layer}.weight", 0]), reason)
            for layer, reason in reasons.items()
            if layer not in varying
        ]


def _check_count(model: nn.Module, space: SearchSpace) -> None:
    """Compare the dense cost with fvcore's count of the same network."""
    with _explained("fvcore's count"):
        counted = count_cost(model, space.input_shape)
    if space.dense_cost != counted:
        raise TraceError(
            f"the cost model gives {space.dense_cost} where fvcore counts {counted}: an operation of this network is "
            "not modelled, so no budget could be kept"
        )
