"""The proof of a trace: narrow networks are run beside the dense one, operation by operation.

The dense network runs once more with the removed channels masked wherever a weight sums over them. Every operation of
the narrow network must then give the kept channels of what it gave in the dense one: the same values, in the shape that
the recording predicts. An operation that does not (a permutation by index, a written shape, a softmax over channels) is
a fault: its channels must be fixed. What is known to normalise over the channels gives other values in a narrow
network; the narrow network goes on with those of the dense one there.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spaces.cost import Cost
from spaces.counting import count_by_layer, peak_activations
from spaces.slicing.layers import fit_attributes
from spaces.slicing.sizes import set_sizes
from spaces.slicing.slicer import KeptIds, Slicer, assign_tensors, narrow_sizes, sliced
from spaces.space import SearchSpace
from spaces.tracing.channels import Channels
from spaces.tracing.labels import Ids
from spaces.tracing.operations import RecordedTensor
from spaces.tracing.passes import DensePass, NarrowPass, Pass, PathError
from spaces.tracing.recording import Recorder, following_layers


@dataclass(frozen=True)
class Fault:
    """An operation by which a narrow network differs from the dense one.

    Attributes:
        reason: what it does, and in which layer.
        suspects: sequences of channel ids, the most suspicious first.
    """

    reason: str
    suspects: tuple[Ids, ...]


def with_distinct_channels(net: nn.Module, axes: Mapping[str, Mapping[int, Ids]]) -> nn.Module:
    """Change, in place, tensors whose values are all equal, as initial BatchNorm weights are.

    Channels that behave alike would hide that one was taken for another.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if name not in axes or tensor.numel() < 2 or not tensor.is_floating_point():
                continue
            value = tensor.flatten()[0].clone()
            if not bool((tensor == value).all()):
                continue
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(value * (0.5 + noise) if value else 0.2 * noise - 0.1)
    return net


def faults_of(
    space: SearchSpace, recorder: Recorder, net: nn.Module, counts: dict[str, int], seed: int
) -> Sequence[Fault]:
    """Compare narrow networks with the dense one: their outputs, their cost and a training step.

    Args:
        space: as traced so far.
        recorder: of the dense network.
        net: the dense network, on the CPU.
        counts: fvcore's count of the dense network by layer.
        seed: chooses the widths and the channels; 0 in the first round.
    """
    first, second = halves(space, seed)
    narrow = sliced(net, space, first)
    faults = _output_faults(space, recorder, net, narrow, first, seed > 0)
    faults = faults or _output_faults(space, recorder, net, _reloaded(net, space, second), second, seed > 0)
    if faults:
        return faults
    fault = _cost_fault(space, recorder, narrow, first, counts) or _training_fault(space, recorder, net, narrow)
    return [fault] if fault else []


def halves(space: SearchSpace, seed: int) -> tuple[KeptIds, KeptIds]:
    """Return two random selections; every channel of a variable group is removed in one of them.

    Both keep equally many channels in every conv group, an odd number in one of them and an even number in the other
    where there are enough.
    """
    rng = np.random.default_rng(seed)
    last = space.groups[-1]
    first = np.ones(last.start + last.width + 1, dtype=bool)
    second = first.copy()
    for group in space.variable:
        block = group.width // group.conv_groups
        if block < 2:
            continue
        least = 2 if block > 3 else 1  # of one channel alone, no order can be told
        count = int(rng.integers(max(least, block // 4), max(least, min(3 * block // 4, block - least)) + 1))
        for number in range(group.conv_groups):
            chosen = group.start + number * block + rng.permutation(block)
            first[chosen[count:]] = False
            second[chosen[: count + (block % 2 == 0 and block - count > least)]] = False
    return first, second


def _output_faults(
    space: SearchSpace, recorder: Recorder, net: nn.Module, narrow_net: nn.Module, kept: KeptIds, repairing: bool
) -> list[Fault]:
    """Run the dense network and a narrow one beside each other, and list the operations by which they differ.

    Args:
        space: as traced so far.
        recorder: of the dense network.
        net: the dense network, on the CPU.
        narrow_net: the network with the kept channels.
        kept: the channels that are kept.
        repairing: whether faults are known, so that more are expected: all are listed then.
    """
    channel_of = recorder.labels.components()
    mask = _kept_by_component(space, recorder, channel_of, kept)

    def kept_of(ids: Ids) -> Ids:
        return np.flatnonzero(mask[channel_of[ids]])

    image = torch.randn(1, *space.input_shape, generator=torch.Generator().manual_seed(0))
    dense = DensePass(recorder.steps, kept_of, repairing)
    fault = _run(dense, net, image, recorder)
    if fault is not None:
        return [fault]
    narrow = NarrowPass(recorder.steps, dense, kept_of)
    fault = _run(narrow, narrow_net, image, recorder)
    faults = [_fault_of(recorder, number) for number in narrow.faults]
    return [*faults, fault] if fault is not None else faults


def _run(following: Pass, net: nn.Module, image: Tensor, recorder: Recorder) -> Fault | None:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            following.run(net, image)
    except Exception as error:  # the network may raise anything
        text = " ".join(str(error).split())[:120]
        reason = text if isinstance(error, PathError) else f"raises {type(error).__name__} when it is narrower ({text})"
        return _layer_fault(recorder, following.layers, reason, following.position)
    return None


def _kept_by_component(space: SearchSpace, recorder: Recorder, channel_of: Ids, kept: KeptIds) -> KeptIds:
    """Return, for every component of the labels, whether its channel is kept."""
    mask = np.ones(int(channel_of.max(initial=-1)) + 1, dtype=bool)
    for name, dims in space.axes.items():
        for dim, ids in dims.items():
            mask[channel_of[recorder.axes[name][dim]]] = kept[ids]
    return mask


def _reloaded(net: nn.Module, space: SearchSpace, kept: KeptIds) -> nn.Module:
    """Return the narrow network as a checkpoint is read: a copy of the dense one whose tensors are replaced."""
    slicer = Slicer(space, kept)
    names: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    named = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        first = names.setdefault(id(tensor), name)
        if first == name:
            tensors[name] = slicer(name, tensor.detach())
        else:
            aliases[name] = first
    narrow = copy.deepcopy(net)
    assign_tensors(narrow, tensors, aliases)
    fit_attributes(narrow)
    set_sizes(narrow, narrow_sizes(space, slicer))
    return narrow


def _fault_of(recorder: Recorder, number: int) -> Fault:
    step = recorder.steps[number]
    where = step.layer or "the network"
    own = [leaf.flow.ids for leaf in step.leaves if isinstance(leaf, RecordedTensor) and leaf.flow is not None]
    return Fault(f"{step.text} in {where} needs all channels", (*step.entering, *own, *_before(recorder, number)))


def _layer_fault(recorder: Recorder, layers: Sequence[str], reason: str, number: int) -> Fault:
    """Return the fault of the innermost of `layers`, at the step of that number."""
    suspects: list[Ids] = []
    for layer in reversed(layers):
        suspects += recorder.layer_inputs.get(layer, [])
        for name, dims in recorder.axes.items():
            if layer and name.startswith(f"{layer}."):
                suspects += dims.values()
    where = next((layer for layer in reversed(layers) if layer), "the network")
    return Fault(f"{where} {reason}", (*suspects, *_before(recorder, number)))


def _before(recorder: Recorder, number: int) -> Iterator[Ids]:
    """Yield the channels of the steps before a step, the nearest first."""
    for step in reversed(recorder.steps[:number]):
        yield from step.entering


def activations_agree(space: SearchSpace, net: nn.Module, seed: int) -> bool:
    """Tell whether a narrow network has the peak of activations that the cost model says; the dense one was recorded.

    It runs without computing anything, on the meta device, where the network can.
    """
    try:
        return _peak_agrees(space, _shapes_of(net), seed) or _peak_agrees(space, net, seed)
    except Exception:  # an operation without a meta implementation, or one that reads values
        return _peak_agrees(space, net, seed)


def _peak_agrees(space: SearchSpace, net: nn.Module, seed: int) -> bool:
    kept = next(iter(halves(space, seed)))
    widths = {group.name: int(kept[group.start : group.start + group.width].sum()) for group in space.variable}
    return peak_activations(sliced(net, space, kept), space.input_shape) == space.cost(widths).activations


def _shapes_of(net: nn.Module) -> nn.Module:
    """Return a copy of a network on the meta device; no weights are copied."""
    memo: dict[int, Tensor] = {
        id(tensor): nn.Parameter(tensor.detach().to("meta"), requires_grad=False) for tensor in net.parameters()
    }
    memo |= {id(tensor): tensor.to("meta") for tensor in net.buffers()}
    return copy.deepcopy(net, memo)


@contextmanager
def _training(net: nn.Module) -> Iterator[list[str]]:
    """Yield the list of the layers that are being computed, of a network in training mode."""
    layers: list[str] = []
    with following_layers(net.train(), lambda name, _: layers.append(name), layers.pop):
        yield layers


def _training_fault(space: SearchSpace, recorder: Recorder, net: nn.Module, narrow_net: nn.Module) -> Fault | None:
    """Take a training step with a narrow network; None where it works, or where it fails with the dense one too.

    The narrow network is changed by the step.
    """
    fault = _step_fault(space, recorder, narrow_net)
    if fault is None or _step_fault(space, recorder, copy.deepcopy(net)) is not None:
        return None
    return fault


def _step_fault(space: SearchSpace, recorder: Recorder, net: nn.Module) -> Fault | None:
    images = torch.randn(2, *space.input_shape, generator=torch.Generator().manual_seed(1))
    with _training(net) as layers, warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            outputs = [leaf for leaf in tree_leaves(net(images)) if isinstance(leaf, Tensor)]
            losses = [leaf.float().square().mean() for leaf in outputs if leaf.requires_grad]
            if losses:
                torch.stack(losses).sum().backward()
        except Exception as error:  # the network may raise anything
            text = " ".join(str(error).split())[:120]
            reason = f"raises {type(error).__name__} in training when it is narrower ({text})"
            return _layer_fault(recorder, layers, reason, len(recorder.steps))
    return None


def _cost_fault(
    space: SearchSpace, recorder: Recorder, narrow: nn.Module, kept: KeptIds, counts: dict[str, int]
) -> Fault | None:
    """Compare the cost of a narrow network with fvcore's count; the layer that costs otherwise is the fault."""
    counted = count_by_layer(narrow, space.input_shape)
    widths = {group.name: int(kept[group.start : group.start + group.width].sum()) for group in space.variable}
    modelled = space.cost_model(widths)
    if modelled.agrees(Cost(counted[""], sum(parameter.numel() for parameter in narrow.parameters()))):
        return None
    channels = Channels(recorder, recorder.labels)
    channels.groups()  # numbers the channels
    dense_model = channels.flops_by_layer(np.ones(len(kept), dtype=bool))
    narrow_model = channels.flops_by_layer(kept)
    wrong = [
        layer
        for layer in counts | dense_model  # fvcore leaves out layers whose outputs are not used
        if counts.get(layer, 0) - dense_model.get(layer, 0) != counted.get(layer, 0) - narrow_model.get(layer, 0)
    ]
    layer = max(wrong, key=lambda name: name.count(".") + bool(name), default="")
    path = [".".join(layer.split(".")[:depth]) for depth in range(layer.count(".") + 2)] if layer else [""]
    return _layer_fault(recorder, path, "costs FLOPs that do not follow its channels", len(recorder.steps))
