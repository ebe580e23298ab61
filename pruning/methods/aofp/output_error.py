"""The relative output error of layers when channels that they read are hidden, measured during ordinary training.

This is the scoring path of Ding et al., ICML 2019 (AOFP), arXiv 1905.04748. With p the output of a consumer after its
BatchNorm and activation, and q the same output with some channels hidden, the relative output error is
sum((p - q)^2) / sum(p^2), over the batch, the channels and all positions.

Hooks multiply the inputs of the consumers by the mask of the alive channels, so a dead channel reaches no layer
and gets no gradient of the loss. In a scored batch, each consumer also computes q, without gradient. Only the error is
stored, so that no later layer sees q and all layers can be scored at once.

BatchNorm normalises the second pass with the batch statistics of that pass, as the authors' code does (published
thresholds are on that scale), but the running statistics are not touched; the authors' code lets the second pass
update them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from pruning.calibration.layer_calls import After, Before, LayerCall, LayerHooks
from pruning.calibration.occurrences import Occurrences
from pruning.methods.aofp.ablation import ablate, along, normalised
from spaces.groups import ChannelGroup
from spaces.slicing.filters import as_filters
from spaces.space import LayerWeights, SearchSpace

OVERWRITING = frozenset("relu relu6 leaky_relu elu selu celu silu mish hardswish hardsigmoid hardtanh".split())
ACTIVATIONS = OVERWRITING | {"gelu", "sigmoid", "tanh", "softplus"}


@dataclass(frozen=True)
class Activation:
    """A function of `torch.nn.functional` and the arguments with which the net calls it."""

    name: str
    rest: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, value: Tensor, overwrite: bool = False) -> Tensor:
        """Apply the function; with `overwrite`, in the memory of `value` where the function can."""
        options = dict(self.options) | ({"inplace": True} if overwrite and self.name in OVERWRITING else {})
        return getattr(functional, self.name)(value, *self.rest, **options)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Consumer:
    """A layer that reads channels which may be hidden, and at whose output the error is measured.

    Attributes:
        name: of the convolution or linear layer.
        layer: its parameters.
        reads, writes: channel id of every input and output feature; -1 for features of no group.
        norm: name of the BatchNorm that directly follows the layer; empty if none does.
        activation: the elementwise function that follows next; None if none does, as before an addition.
    """

    name: str
    layer: LayerWeights
    reads: Tensor
    writes: Tensor
    norm: str = ""
    activation: Activation | None = None


def find_consumers(net: nn.Module, space: SearchSpace, names: Iterable[str]) -> dict[str, Consumer]:
    """Describe the layers of these names.

    Two blank images run through the net in eval mode, to record which BatchNorm and activation follow each layer.
    """
    weight = next(net.parameters())
    blank = torch.zeros(2, *space.input_shape, dtype=weight.dtype, device=weight.device)
    modes = [(module, module.training) for module in net.modules()]
    following = _FollowingLayers(net, space.layers, names)
    net.eval()
    try:
        with torch.no_grad(), following:
            net(blank)
    finally:
        following.remove()
        for module, mode in modes:
            module.training = mode
    consumers = {}
    for name in names:
        layer = space.layers[name]
        axes, filters = space.axes[layer.weight], as_filters(space, layer.weight, net.get_parameter(layer.weight))
        writes = torch.as_tensor(axes[0]) if 0 in axes else torch.full((len(filters),), -1)
        reads, writes = torch.as_tensor(axes[1]).to(weight.device), writes.to(weight.device)
        norm, activation = following.norms.get(name, ""), following.activations.get(name)
        consumers[name] = Consumer(name, layer, reads, writes, norm, activation)
    return consumers


class _FollowingLayers(TorchFunctionMode):
    """Records which BatchNorm and which activation take each layer's output next."""

    def __init__(self, net: nn.Module, layers: Mapping[str, LayerWeights], names: Iterable[str]) -> None:
        super().__init__()
        self.norms: dict[str, str] = {}
        self.activations: dict[str, Activation] = {}
        self._source: dict[int, str] = {}  # id of a tensor -> layer whose output it is, normalised or not
        self._outputs: list[Tensor] = []  # holds the tensors, so that their id() stays unique
        self._handles: list[RemovableHandle] = []
        self._hooks = LayerHooks(net, layers)
        for name in names:
            self._hooks.add(name, after=self._after_layer(name))
        for name, module in net.named_modules():
            if isinstance(module, _BatchNorm):
                self._handles.append(module.register_forward_hook(self._after_norm(name)))

    def _after_layer(self, name: str) -> After:
        def hook(call: LayerCall) -> None:
            self._note(call.output, name)

        return hook

    def _after_norm(self, norm: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: Any, output: Tensor) -> None:
            name = self._source.get(id(inputs[0]))
            if name is not None and name not in self.norms and name not in self.activations:
                self.norms[name] = norm
                self._note(output, name)

        return hook

    def _note(self, output: Tensor, name: str) -> None:
        self._source[id(output)] = name
        self._outputs.append(output)

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").removesuffix("_")
        source = self._source.get(id(args[0])) if args else None
        if name in ACTIVATIONS and source is not None and source not in self.activations:
            options = {key: value for key, value in kwargs.items() if key != "inplace"}
            self.activations[source] = Activation(name, args[1:], options)
        return func(*args, **kwargs)

    def remove(self) -> None:
        """Take all hooks off the net."""
        self._hooks.remove()
        for handle in self._handles:
            handle.remove()


class ScoringPath:
    """Hooks on a net that is being trained: they mask dead channels and measure the errors of hiding others.

    Args:
        net: contains the consumers; nothing but hooks is added to it.
        consumers: name -> consumer, of all layers that read channels which may be hidden.
    """

    def __init__(self, net: nn.Module, consumers: Mapping[str, Consumer]) -> None:
        self._net, self._consumers = net, consumers
        self._device = next(net.parameters()).device
        # Consumer -> sets of input features that are hidden from it in this batch, one set after the other.
        self._hidden: dict[str, list[Tensor]] = {}
        # (consumer, start of group) -> input features of each channel, and which of them count where not all do
        self._places: dict[tuple[str, int], tuple[Tensor, Tensor | None]] = {}
        # By consumer; a consumer without an entry has no dead channel.
        self._input_masks: dict[str, Tensor] = {}
        self._output_masks: dict[str, Tensor] = {}
        self._before_norm: dict[str, LayerCall] = {}  # of consumers whose BatchNorm has not run yet
        self._errors: dict[str, list[Tensor]] = {}  # one per use of the consumer in this batch
        self._hooks = LayerHooks(net, {name: consumer.layer for name, consumer in consumers.items()})
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Put the hooks on the net."""
        for consumer in self._consumers.values():
            self._hooks.add(consumer.name, before=self._mask_hook(consumer), after=self._score_hook(consumer))
            if consumer.norm:
                norm = self._net.get_submodule(consumer.norm)
                self._handles.append(norm.register_forward_hook(self._score_normalised_hook(consumer)))

    def detach(self) -> None:
        """Take the hooks off, so that the net can be copied or used unmasked."""
        self._hooks.remove()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def keep(self, alive: Tensor) -> None:
        """Mask all other channels from the next batch on.

        Args:
            alive: bool, shape (channel ids,), on the CPU.
        """
        alive = torch.cat([alive, torch.ones(1, dtype=torch.bool)])
        for masks, features in ((self._input_masks, "reads"), (self._output_masks, "writes")):
            masks.clear()
            for consumer in self._consumers.values():
                mask = alive[getattr(consumer, features).cpu()]
                if not mask.all():
                    masks[consumer.name] = mask.to(self._device)

    def hide(self, drawn: Iterable[tuple[ChannelGroup, Sequence[Tensor]]]) -> None:
        """Hide sets of channels of these groups from their consumers in the next batch; no other group is scored.

        Each consumer computes its output once for every set of its group.
        """
        self._hidden = {
            consumer: [self._features(consumer, group, channels) for channels in sets]
            for group, sets in drawn
            for consumer in group.consumers
        }

    def _features(self, consumer: str, group: ChannelGroup, channels: Tensor) -> Tensor:
        """Return the input features of a consumer that hold some channels of a group.

        A channel has several features where its map is flattened before the consumer, and none where that reads only
        some of the group.
        """
        key = consumer, group.start
        if key not in self._places:
            reads = self._consumers[consumer].reads.cpu() - group.start
            found = Occurrences.of(torch.where((reads >= 0) & (reads < group.width), reads, -1))
            index = torch.zeros(group.width, found.index.shape[1], dtype=torch.int64)
            counted = torch.zeros_like(index, dtype=torch.bool)
            index[found.channels], counted[found.channels] = found.index, found.counted
            everywhere = bool(counted.all())
            self._places[key] = index.to(self._device), None if everywhere else counted.to(self._device)
        index, places = self._places[key]
        return index[channels].flatten() if places is None else index[channels][places[channels]]

    def relative_errors(self) -> dict[str, Tensor]:
        """Return consumer -> relative output errors of its hidden sets in the last batch, and reset them.

        Errors are on the device, shape (sets,), at least 0: means over the uses of a consumer in the batch.
        """
        errors = {name: torch.stack(values).mean(dim=0) for name, values in self._errors.items()}
        self._errors.clear()
        return errors

    def _mask_hook(self, consumer: Consumer) -> Before:
        last = self._is_linear(consumer)

        def hook(value: Tensor) -> Tensor | None:
            mask = self._input_masks.get(consumer.name)
            return None if mask is None else value * along(mask, last, value)

        return hook

    def _is_linear(self, consumer: Consumer) -> bool:
        return self._net.get_parameter(consumer.layer.weight).ndim == 2

    def _score_hook(self, consumer: Consumer) -> After:
        def hook(call: LayerCall) -> None:
            if not self._net.training or consumer.name not in self._hidden:
                return
            call = replace(call, value=call.value.detach(), output=call.output.detach())
            if consumer.norm:
                self._before_norm[consumer.name] = call
            else:
                self._score(consumer, call, call.output)

        return hook

    def _score_normalised_hook(self, consumer: Consumer) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            call = self._before_norm.pop(consumer.name, None)
            if call is not None:
                self._score(consumer, call, output.detach())

        return hook

    @torch.no_grad()
    def _score(self, consumer: Consumer, call: LayerCall, base: Tensor) -> None:
        """Measure the errors of a consumer.

        Args:
            call: of the layer itself.
            base: its output after the BatchNorm that follows, if there is one.
        """
        alive = self._output_masks.get(consumer.name)
        mask = None if alive is None else along(alive, call.channels_last, base)
        exact = torch.promote_types(base.dtype, torch.float32)

        def seen(value: Tensor, overwrite: bool) -> Tensor:
            if consumer.activation is not None:
                value = consumer.activation(value, overwrite)
            return (value if mask is None else value * mask).to(exact)

        base = seen(base, overwrite=False)
        energy = torch.linalg.vector_norm(base).square() + torch.finfo(exact).tiny  # outputs of 0 have an error of 0
        errors = []
        for hidden in self._hidden[consumer.name]:
            ablated = ablate(call, hidden)
            if consumer.norm:
                ablated = normalised(self._net.get_submodule(consumer.norm), ablated)
            # Allocating large tensors costs more than the arithmetic, so the difference overwrites `ablated`.
            difference = seen(ablated, overwrite=True).sub_(base)
            errors.append(torch.linalg.vector_norm(difference).square() / energy)
        self._errors.setdefault(consumer.name, []).append(torch.stack(errors))
