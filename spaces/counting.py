"""The cost of a real network, counted on itself; every cost model must agree with it.

FLOPs are fvcore's. The peak of the activations is that of the live tensors of one forward pass, operation by operation:
a tensor that depends on the image is live from the operation that makes it to the last one that reads it, so a tensor
that nobody reads is not, and the image and the outputs count like all others. A view, and an operation in place, share
the memory of their tensor. Weights, and what is computed from them alone, are no activations, and neither is the
workspace inside an operation.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from spaces.cost import Cost

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # its import says that torch.jit.script is deprecated
    from fvcore.nn import FlopCountAnalysis


class TensorLives(TorchDispatchMode):
    """Follows the tensors of a forward pass that depend on its image; each has a number, the image 0.

    Attributes:
        sizes: bytes of every tensor.
        shapes: of every tensor, as it was made.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []
        self.shapes: list[tuple[int, ...]] = []
        self._spans: list[list[int]] = []  # number -> operation that made it, last one that read it
        self._operations = 0
        self._numbers: dict[int, int] = {}
        self._storages: list[StorageWeakRef] = []  # which keep the address of a freed storage from another one
        self._add(image)

    @override
    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [number for number in map(self.number, _tensors([args, kwargs])) if number is not None]
        if read:
            self._operations += 1
            for number in read:
                self._spans[number][1] = self._operations
            for tensor in _tensors(out):
                if self.number(tensor) is None:
                    self._add(tensor)
        return out

    def number(self, tensor: Tensor) -> int | None:
        """Return the number of a tensor, or of the one that it is a view of; None for one of weights alone."""
        return self._numbers.get(_storage(tensor).cdata)

    def end(self, output: Any) -> None:
        """Note the outputs of the network, which stay live to the end."""
        for tensor in _tensors(output):
            number = self.number(tensor)
            if number is not None:
                self._spans[number][1] = self._operations + 1

    def live(self) -> list[tuple[int, ...]]:
        """Return the tensors that are live at once, operation by operation, each set once."""
        starts: dict[int, list[int]] = {}
        ends: dict[int, list[int]] = {}
        for number, (made, read) in enumerate(self._spans):
            if read > made:
                starts.setdefault(made, []).append(number)
                ends.setdefault(read, []).append(number)
        now: set[int] = set()
        found: dict[tuple[int, ...], None] = {}
        for operation in range(self._operations + 1):
            now.update(starts.get(operation, ()))
            found[tuple(sorted(now))] = None
            now.difference_update(ends.get(operation, ()))
        return list(found)

    def _add(self, tensor: Tensor) -> None:
        storage = _storage(tensor)
        self._numbers[storage.cdata] = len(self.sizes)
        self._storages.append(storage)
        self.sizes.append(tensor.untyped_storage().nbytes())
        self.shapes.append(tuple(tensor.shape))
        self._spans.append([self._operations, self._operations])


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.layout == torch.strided)


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def peak_activations(net: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Return the bytes of the tensors that are live at once, at most, in a forward pass of one image in eval mode.

    The modes of the network's modules are restored.

    Args:
        net: on any device; on meta nothing is computed.
        input_shape: channels, height and width of one image.
    """
    image = _image(net, input_shape)
    lives = TensorLives(image)
    with _evaluated(net), torch.no_grad(), lives:
        lives.end(net(image))
    return max(sum(lives.sizes[number] for number in numbers) for numbers in lives.live())


def count_cost(net: nn.Module, input_shape: tuple[int, int, int]) -> Cost:
    """Count FLOPs of one image in eval mode, parameters, and the peak of the activations; no cost model is involved.

    The modes of the network's modules are restored. One multiply-add is one FLOP. A layer that computes the same in
    several forms has an attribute `counting`: it is true here, and the layer then computes in the form that is counted.

    Args:
        net: on any device but meta, because fvcore runs the network.
        input_shape: channels, height and width of one image.
    """
    flops, params = count_by_layer(net, input_shape)[""], sum(parameter.numel() for parameter in net.parameters())
    return Cost(flops, params, peak_activations(net, input_shape))


def count_by_layer(net: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """Count as `count_cost` does; return the FLOPs of every layer and all layers inside it, "" for the network."""
    with _evaluated(net), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit warns about Python code that depends on shapes
        analysis = FlopCountAnalysis(net, _image(net, input_shape))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        return {name: int(flops) for name, flops in analysis.by_module().items()}


def _image(net: nn.Module, input_shape: tuple[int, int, int]) -> Tensor:
    """Return an image on the device of the network."""
    parameter = next(net.parameters(), None)
    return torch.zeros(1, *input_shape, device=parameter.device if parameter is not None else None)


@contextmanager
def _evaluated(net: nn.Module) -> Iterator[None]:
    """Put a network in eval mode, in the form that is counted, and restore the mode of every module afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    formed = [(module, module.counting) for module in net.modules() if hasattr(module, "counting")]
    try:
        for module, _ in formed:
            module.counting = True  # type: ignore[assignment]
        net.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, counting in formed:
            module.counting = counting
