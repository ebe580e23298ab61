"""Calls of layers while a network runs, be the layer a module or a parameter that a function of torch takes.

A module has hooks of its own. A parameter has none: the functions that take it as their weight are watched while the
network runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from spaces.space import LayerWeights
from spaces.tracing.operations import CONVOLUTIONS, TRANSPOSED

FUNCTIONS = CONVOLUTIONS | TRANSPOSED | {"linear"}
REPEATABLE = (
    *(nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, nn.Linear.forward),
    *(nn.ConvTranspose1d.forward, nn.ConvTranspose2d.forward, nn.ConvTranspose3d.forward),
)


@dataclass(frozen=True)
class LayerCall(ABC):
    """One call of a layer.

    Attributes:
        value: its input.
        output: what it gave.
        transposed: whether its weight holds the inputs first.
    """

    value: Tensor
    output: Tensor
    transposed: bool

    def turned(self, weight: Tensor) -> Tensor:
        """Return filters of a weight as it holds them, or the weight that holds filters."""
        return weight.transpose(0, 1) if self.transposed else weight

    @property
    @abstractmethod
    def filters(self) -> Tensor:
        """The weight, shape (outputs, inputs / groups, ...); of a linear layer (outputs, inputs)."""

    @property
    @abstractmethod
    def bias(self) -> Tensor | None:
        """The bias, shape (outputs,)."""

    @property
    @abstractmethod
    def groups(self) -> int:
        """The groups of the convolution."""

    @abstractmethod
    def repeat(self, value: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output for another input, other filters and another bias."""

    @property
    def channels_last(self) -> bool:
        """Whether channels lie along the last axis of input and output, as in a linear layer, and not along axis 1."""
        return self.filters.ndim == 2


@dataclass(frozen=True)
class _ModuleCall(LayerCall):
    """A call of a module; it can be repeated if the module's `forward` is that of a plain layer."""

    module: nn.Module

    @property
    @override
    def filters(self) -> Tensor:
        return self.turned(cast(Tensor, self.module.weight))

    @property
    @override
    def bias(self) -> Tensor | None:
        return cast("Tensor | None", self.module.bias)

    @property
    @override
    def groups(self) -> int:
        return self.module.groups if isinstance(self.module, _ConvNd) else 1

    @override
    def repeat(self, value: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
        layer: Any = self.module
        if layer.weight.ndim == 2:
            return functional.linear(value, filters, bias)
        if not layer.transposed:
            return layer._conv_forward(value, filters, bias)  # type: ignore[no-any-return]
        size, ndim = list(self.output.shape[2:]), self.output.ndim - 2
        padding = layer._output_padding(
            value, size, layer.stride, layer.padding, layer.kernel_size, ndim, layer.dilation
        )
        further = (layer.stride, layer.padding, padding, layer.groups, layer.dilation)
        return getattr(functional, f"conv_transpose{ndim}d")(value, self.turned(filters), bias, *further)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _FunctionCall(LayerCall):
    """A call of a function that takes a parameter as its weight."""

    function: Callable[..., Tensor]
    arguments: Mapping[str, Any]

    @property
    @override
    def filters(self) -> Tensor:
        return self.turned(self.arguments["weight"])

    @property
    @override
    def bias(self) -> Tensor | None:
        return self.arguments.get("bias")

    @property
    @override
    def groups(self) -> int:
        return int(self.arguments.get("groups", 1))

    @override
    def repeat(self, value: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
        new = {"input": value, "weight": self.turned(filters), "bias": bias}
        return self.function(**{**self.arguments, **new})


Before = Callable[[Tensor], Tensor | None]  # gets the input of a call, and may give another one in its place
After = Callable[[LayerCall], None]


class _Hooks(NamedTuple):
    before: Before | None
    after: After | None
    transposed: bool


def module_of(net: nn.Module, layer: LayerWeights) -> nn.Module | None:
    """Return the convolution or linear layer whose weight it is; None for a parameter that a function takes."""
    owner, _, field = layer.weight.rpartition(".")
    module = net.get_submodule(owner)
    return module if field == "weight" and isinstance(module, _ConvNd | nn.Linear) else None


def is_observable(net: nn.Module, layer: LayerWeights) -> bool:
    """Whether calls of the layer can be told: not where a function takes what is computed from a bare parameter."""
    return not layer.computed or module_of(net, layer) is not None


def is_repeatable(net: nn.Module, layer: LayerWeights) -> bool:
    """Whether a call of the layer can be repeated with other inputs and weights."""
    module = module_of(net, layer)
    return not layer.computed if module is None else type(module).forward in REPEATABLE


class LayerHooks:
    """Hooks on the layers of a network; they last until `remove`.

    Args:
        net: gets the hooks.
        layers: those of its space, by name.
    """

    def __init__(self, net: nn.Module, layers: Mapping[str, LayerWeights]) -> None:
        self._net, self._layers = net, layers
        self._handles: list[RemovableHandle] = []
        self._functions: dict[str, list[_Hooks]] = {}  # weight -> its hooks
        self._watching: list[_WatchedFunctions] = []  # one per forward pass that is running

    def add(self, name: str, *, before: Before | None = None, after: After | None = None) -> None:
        """Call functions before and after every call of a layer that `is_observable`."""
        layer = self._layers[name]
        module = module_of(self._net, layer)
        if module is not None:
            self._add_to_module(module, _Hooks(before, after, layer.transposed))
            return
        if not self._functions:
            self._handles.append(self._net.register_forward_pre_hook(self._begin))
            self._handles.append(self._net.register_forward_hook(self._end, always_call=True))
        self._functions.setdefault(layer.weight, []).append(_Hooks(before, after, layer.transposed))

    def remove(self) -> None:
        """Take all hooks off the network."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._functions.clear()

    def _add_to_module(self, module: nn.Module, hooks: _Hooks) -> None:
        before, after, transposed = hooks
        if before is not None:

            def enter(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
                value = before(inputs[0])
                return None if value is None else (value, *inputs[1:])

            self._handles.append(module.register_forward_pre_hook(enter))
        if after is not None:

            def leave(called: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
                after(_ModuleCall(inputs[0], output, transposed, called))

            self._handles.append(module.register_forward_hook(leave))

    def _begin(self, net: nn.Module, _inputs: Any) -> None:
        weights = {id(net.get_parameter(name)): hooks for name, hooks in self._functions.items()}
        self._watching.append(_WatchedFunctions(weights))
        self._watching[-1].__enter__()  # type: ignore[no-untyped-call]

    def _end(self, *_: Any) -> None:
        self._watching.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]


class _WatchedFunctions(TorchFunctionMode):
    """Calls hooks around the functions that take one of some weights.

    Args:
        weights: id of a parameter -> its hooks.
    """

    def __init__(self, weights: Mapping[int, Sequence[_Hooks]]) -> None:
        super().__init__()
        self._weights = weights

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        name = getattr(func, "__name__", "")
        hooks = self._weights.get(id(weight), ()) if name in FUNCTIONS else ()
        if not hooks:
            return func(*args, **kwargs)
        arguments = dict(zip(_PARAMETERS[name], args, strict=False)) | kwargs
        for before, _, _ in hooks:
            value = None if before is None else before(arguments["input"])
            arguments["input"] = arguments["input"] if value is None else value
        out = func(**arguments)
        for _, after, transposed in hooks:
            if after is not None:
                after(_FunctionCall(arguments["input"], out, transposed, func, arguments))
        return out


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_PARAMETERS = {
    "linear": ("input", "weight", "bias"),
    **dict.fromkeys(CONVOLUTIONS, _CONVOLUTION),
    **dict.fromkeys(TRANSPOSED, _TRANSPOSED),
}
