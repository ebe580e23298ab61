"""Networks with several inputs, or one that is no image: the inputs packed into one tensor, from which a hook unpacks.

Everything in this project hands a network one tensor of shape (N, C, H, W). What a network takes besides is constant.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from spaces.errors import TraceError


@dataclass(frozen=True)
class Inputs:
    """What one call of a network takes: `net(*args, **kwargs)`; tensors may stand anywhere in it."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None

    def flatten(self) -> tuple[list[Any], TreeSpec]:
        """Return the leaves, and the structure that they have."""
        return tree_flatten((tuple(self.args), dict(self.kwargs or {})))


@dataclass(frozen=True)
class Packing:
    """How the inputs of a network are packed.

    Every tensor whose first dimension is that of the first tensor holds one entry per sample, and is packed. All other
    leaves are the same for every batch.

    Attributes:
        leaves: of the example; the packed ones stand there as None.
        places: index among the leaves -> shape of one sample and type, in the order of the packed tensor.
        plain: whether the inputs are one batch of images, which needs no packing.
        bounds: index among the leaves -> least and largest value of an input of whole numbers. Made-up values, such as
            those that a trace runs with, are brought inside: beyond them an embedding may have no row.
    """

    leaves: tuple[Any, ...]
    structure: TreeSpec
    places: Mapping[int, tuple[tuple[int, ...], torch.dtype]]
    plain: bool
    bounds: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, example: Inputs) -> "Packing":
        """Return the packing of inputs like an example.

        Raises:
            TraceError: the example holds no tensor with a sample in it.
        """
        leaves, structure = example.flatten()
        samples = next((len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), 0)
        if not samples:
            raise TraceError("the inputs hold no tensor of at least one sample; give a batch as the net takes it")
        packed = {
            index: (tuple(leaf.shape[1:]), leaf.dtype)
            for index, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == samples
        }
        first = leaves[0]
        plain = len(leaves) == 1 and first.ndim == 4 and first.is_floating_point() and not example.kwargs
        constant = (None if index in packed else leaf for index, leaf in enumerate(leaves))
        return cls(tuple(constant), structure, packed, plain)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one packed sample."""
        if self.plain:
            ((channels, height, width),) = (shape for shape, _ in self.places.values())
            return channels, height, width
        return sum(int(torch.Size(shape).numel()) for shape, _ in self.places.values()), 1, 1

    def pack(self, inputs: Inputs) -> Tensor:
        """Return the inputs of N samples as a float32 tensor of shape (N, *self.shape).

        Raises:
            TraceError: they are not built as the example is.
        """
        leaves, structure = inputs.flatten()
        found = [leaves[index] for index in self.places] if structure == self.structure else []
        shapes = [tuple(leaf.shape[1:]) if isinstance(leaf, Tensor) else None for leaf in found]
        if shapes != [shape for shape, _ in self.places.values()]:
            raise TraceError(f"a batch has inputs of other kinds or shapes than the first: {shapes or structure}")
        rows = [leaf.detach().to(torch.float32) for leaf in found]
        return rows[0] if self.plain else torch.cat([row.reshape(len(row), -1) for row in rows], 1)[:, :, None, None]

    def bounded(self, packed: Tensor) -> "Packing":
        """Return the packing with the bounds of whole numbers that these packed inputs have."""
        inputs, _ = self.unpack(packed).flatten()
        whole = {index: inputs[index] for index, (_, dtype) in self.places.items() if not dtype.is_floating_point}
        return replace(self, bounds={index: (int(leaf.min()), int(leaf.max())) for index, leaf in whole.items()})

    def unpack(self, packed: Tensor) -> Inputs:
        """Return the inputs in a packed tensor, on its device."""
        leaves, start = list(self.leaves), 0
        for index, (shape, dtype) in self.places.items():
            size = int(torch.Size(shape).numel())
            leaf = packed[:, start : start + size].reshape(len(packed), *shape)
            leaves[index] = (leaf.clamp(*self.bounds[index]) if index in self.bounds else leaf).to(dtype)
            start += size
        leaves = [leaf.to(packed.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(leaves, self.structure)
        return Inputs(args, kwargs)


class _Unpacking:
    """A forward pre-hook that gives a network its inputs from a packed tensor."""

    def __init__(self, packing: Packing) -> None:
        self.packing = packing

    def __call__(self, _module: nn.Module, args: Any, _kwargs: Any) -> tuple[Any, Any]:
        inputs = self.packing.unpack(args[0])
        return inputs.args, inputs.kwargs


def taking_packed(net: nn.Module, packing: Packing) -> nn.Module:
    """Let a network, in place, take its inputs packed; return it."""
    if not packing.plain:
        net.register_forward_pre_hook(_Unpacking(packing), with_kwargs=True, prepend=True)
    return net


def taking_inputs(net: nn.Module) -> nn.Module:
    """Undo `taking_packed`, in place, in a network or a copy of it; return it."""
    for key, hook in list(net._forward_pre_hooks.items()):
        if isinstance(hook, _Unpacking):
            del net._forward_pre_hooks[key]
            net._forward_pre_hooks_with_kwargs.pop(key, None)
    return net
