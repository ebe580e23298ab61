"""What hiding channels does to the layers that read them, measured beside ordinary training. AOFP's scoring path.

Hooks multiply the inputs of the reading layers by the mask of the channels still alive, so a dead channel reaches no
layer and gets no gradient of the loss. In a scored batch each reading layer also computes, without gradient, what it
would have computed with some more channels hidden; the difference is read after its BatchNorm and activation and then
dropped, so nothing downstream sees it and all layers can be scored at once.

BatchNorm normalises the second pass with that pass's own batch statistics, as the authors' code does (published
thresholds are on that scale), but the running statistics are not touched; the authors' code lets the second pass
update them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from pruning.methods.aofp.ablation import ablate, along, normalised
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace

OVERWRITING = frozenset("relu relu6 leaky_relu elu selu celu silu mish hardswish hardsigmoid hardtanh".split())
ACTIVATIONS = OVERWRITING | {"gelu", "sigmoid", "tanh", "softplus"}
READABLE = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, nn.Linear.forward)


@dataclass(frozen=True)
class Activation:
    """A function of torch.nn.functional with the arguments that the net gave it."""

    name: str
    rest: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, value: Tensor, overwrite: bool = False) -> Tensor:
        """Apply it; with `overwrite`, in the memory of `value` where it can."""
        options = dict(self.options) | ({"inplace": True} if overwrite and self.name in OVERWRITING else {})
        return getattr(functional, self.name)(value, *self.rest, **options)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Reader:
    """A layer at whose output damage is read.

    Attributes:
        name: of the convolution or linear layer.
        reads, writes: channel id of every input and output feature; -1 for those of no group.
        norm: name of the BatchNorm that directly follows; empty when none does.
        activation: what directly follows that; None when nothing elementwise does (before an addition, say).
    """

    name: str
    reads: Tensor
    writes: Tensor
    norm: str = ""
    activation: Activation | None = None


def readable(net: nn.Module, name: str) -> bool:
    """Whether the layer is one whose forward pass can be repeated with other weights."""
    try:
        module = net.get_submodule(name)
    except AttributeError:
        return False
    return type(module).forward in READABLE


def find_readers(net: nn.Module, space: SearchSpace, names: Iterable[str]) -> dict[str, Reader]:
    """Run two blank images through the net, in eval mode, to see what follows the layers of these names."""
    weight = next(net.parameters())
    blank = torch.zeros(2, *space.input_shape, dtype=weight.dtype, device=weight.device)
    modes = [(module, module.training) for module in net.modules()]
    probe = _Probe(net, names)
    net.eval()
    try:
        with torch.no_grad(), probe:
            net(blank)
    finally:
        probe.remove()
        for module, mode in modes:
            module.training = mode
    readers = {}
    for name in names:
        axes = space.axes[f"{name}.weight"]
        layer = net.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        writes = torch.as_tensor(axes[0]) if 0 in axes else torch.full((len(layer.weight),), -1)
        following = probe.norms.get(name, ""), probe.activations.get(name)
        readers[name] = Reader(name, torch.as_tensor(axes[1]).to(weight.device), writes.to(weight.device), *following)
    return readers


class _Probe(TorchFunctionMode):
    """Sees which BatchNorm and which activation are the next to take a layer's output."""

    def __init__(self, net: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.norms: dict[str, str] = {}
        self.activations: dict[str, Activation] = {}
        self._source: dict[int, str] = {}  # id of a tensor -> layer whose output it is, normalised or not
        self._alive: list[Tensor] = []  # keeps those tensors, so that id() stays unique
        self._handles: list[RemovableHandle] = []
        for name in names:
            after = self._after(name)
            self._handles.append(net.get_submodule(name).register_forward_hook(after))
        for name, module in net.named_modules():
            if isinstance(module, _BatchNorm):
                self._handles.append(module.register_forward_hook(self._normalised(name)))

    def _after(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._note(output, name)

        return hook

    def _normalised(self, norm: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            name = self._source.get(id(inputs[0]))
            if name is not None and name not in self.norms and name not in self.activations:
                self.norms[name] = norm
                self._note(output, name)

        return hook

    def _note(self, output: Tensor, name: str) -> None:
        self._source[id(output)] = name
        self._alive.append(output)

    def __torch_function__(  # noqa: D105
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
        """Take all hooks off the net again."""
        for handle in self._handles:
            handle.remove()


class DamagePath:
    """Masks and scoring hooks on a net that is being trained.

    Args:
        net: in which the readers are; nothing but hooks is added to it.
        readers: all layers that read channels which may be masked, by name.
    """

    def __init__(self, net: nn.Module, readers: Mapping[str, Reader]) -> None:
        self._net, self._readers = net, readers
        self._device = next(net.parameters()).device
        self._hidden: dict[str, Tensor] = {}  # reader -> input features hidden from it in this batch
        self._places: dict[tuple[str, int], Tensor] = {}  # reader and group -> features of each channel
        self._masks: dict[str, Tensor] = {}  # of inputs; only where a channel is dead
        self._written: dict[str, Tensor] = {}  # of outputs; only where a channel is dead
        self._passing: dict[str, tuple[Tensor, Tensor]] = {}  # input and output of layers whose BatchNorm comes next
        self._damage: dict[str, list[Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Put the hooks on the net."""
        for reader in self._readers.values():
            layer = self._net.get_submodule(reader.name)
            self._handles.append(layer.register_forward_pre_hook(self._masking(reader)))
            self._handles.append(layer.register_forward_hook(self._reading(reader)))
            if reader.norm:
                norm = self._net.get_submodule(reader.norm)
                self._handles.append(norm.register_forward_hook(self._reading_normalised(reader)))

    def detach(self) -> None:
        """Take the hooks off, so that the net can be copied or used unmasked."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def keep(self, alive: Tensor) -> None:
        """Mask every channel that is not alive from the next batch on; `alive` has an entry per channel id."""
        alive = torch.cat([alive, torch.ones(1, dtype=torch.bool)])
        for masks, features in ((self._masks, "reads"), (self._written, "writes")):
            masks.clear()
            for reader in self._readers.values():
                mask = alive[getattr(reader, features).cpu()]
                if not mask.all():
                    masks[reader.name] = mask.to(self._device)

    def hide(self, drawn: Iterable[tuple[ChannelGroup, Tensor]]) -> None:
        """Say which channels of which groups the next batch hides from their readers; others are not scored."""
        self._hidden = {
            reader: self._features(reader, group)[channels].flatten()
            for group, channels in drawn
            for reader in group.consumers
        }

    def _features(self, reader: str, group: ChannelGroup) -> Tensor:
        """Return at which inputs of the reader each channel is: shape (group.width, 1), more where it is flattened."""
        key = reader, group.start
        if key not in self._places:
            reads = self._readers[reader].reads.cpu() - group.start
            inside = (reads >= 0) & (reads < group.width)
            order = torch.where(inside, reads, group.width).sort(stable=True).indices[: int(inside.sum())]
            self._places[key] = order.view(group.width, -1).to(self._device)
        return self._places[key]

    def damages(self) -> dict[str, Tensor]:
        """Return and forget reader -> damage in the batch, sum((p - q)^2) / sum(p^2): a scalar on the device, >= 0."""
        found = {name: torch.stack(values).mean() for name, values in self._damage.items()}
        self._damage.clear()
        return found

    def _masking(self, reader: Reader) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            mask = self._masks.get(reader.name)
            return None if mask is None else (inputs[0] * along(mask, module, inputs[0]), *inputs[1:])

        return hook

    def _reading(self, reader: Reader) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not module.training or reader.name not in self._hidden:
                return
            passing = inputs[0].detach(), output.detach()
            if reader.norm:
                self._passing[reader.name] = passing
            else:
                self._score(reader, passing, passing[1])

        return hook

    def _reading_normalised(self, reader: Reader) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            passing = self._passing.pop(reader.name, None)
            if passing is not None:
                self._score(reader, passing, output.detach())

        return hook

    @torch.no_grad()
    def _score(self, reader: Reader, passing: tuple[Tensor, Tensor], base: Tensor) -> None:
        layer = self._net.get_submodule(reader.name)
        ablated = ablate(layer, *passing, self._hidden[reader.name])
        if reader.norm:
            ablated = normalised(self._net.get_submodule(reader.norm), ablated)
        if reader.activation is not None:
            base, ablated = reader.activation(base), reader.activation(ablated, overwrite=True)
        written = self._written.get(reader.name)
        if written is not None:
            mask = along(written, layer, base)
            base, ablated = base * mask, ablated * mask
        exact = torch.promote_types(base.dtype, torch.float32)
        base, ablated = base.to(exact), ablated.to(exact)
        # Large new tensors cost more than the arithmetic here, so the difference takes the place of `ablated`.
        energy = torch.linalg.vector_norm(base).square() + torch.finfo(exact).tiny  # a silent layer is not damaged
        damage = torch.linalg.vector_norm(ablated.sub_(base)).square() / energy
        self._damage.setdefault(reader.name, []).append(damage)
