"""Weights of a few bits: which filters get how many, and layers that store codes.

The abstract of Hou & Kung (arXiv 2005.13796) names mixed precision within a layer, by the rank of its channels; its
details are not known to us. What stands here is therefore ours: two widths, of which the better ranked filters of
every layer get the larger, trained and coded as `pruning.quantization.rounding` says.
"""

import copy
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pruning.base import PruningError
from pruning.quantization.packing import WIDEST, pack, packed_bytes, unpack
from pruning.quantization.rounding import Rounding, codes_of, column, levels_of
from pruning.selection import Selection
from spaces.errors import WeightsError
from spaces.space import SearchSpace

NARROWEST = 2  # bits: codes -1, 0 and 1
UNRANKED = -1.0
MEGABYTE = 10**6


@dataclass(frozen=True)
class Precision:
    """How many bits a weight gets: `mean` over the ranked filters of a layer, `low` or `high` for each.

    Raises:
        PruningError: low and high not within 2 to 16 or in the wrong order, a mean outside them.
    """

    mean: float
    low: int
    high: int

    def __post_init__(self) -> None:
        """Refuse what cannot be met."""
        if not NARROWEST <= self.low <= self.high <= WIDEST:
            raise PruningError(
                f"low_bits={self.low} and high_bits={self.high} must satisfy {NARROWEST} <= low <= high <= {WIDEST}"
            )
        if not self.low <= self.mean <= self.high:
            raise PruningError(
                f"bits={self.mean:g} is no mean of low_bits={self.low} and high_bits={self.high}; "
                "give a number between them, or 0 for float32"
            )

    def of_filters(self, ranks: Tensor) -> Tensor:
        """Return the bits of each filter of a layer: high for the best, so many that the mean is met from below.

        The mean is missed by less than (high - low) / filters. A filter without rank gets `high` and counts in no mean.

        Args:
            ranks: shape (filters,); higher is better, `UNRANKED` for none.

        Returns:
            Shape (filters,), uint8.

        Raises:
            PruningError: no filters.
        """
        if not len(ranks):
            raise PruningError("a layer without filters cannot be quantised; keep at least one channel")
        ranked = torch.nonzero(ranks > UNRANKED).flatten()
        share = (self.mean - self.low) / max(self.high - self.low, 1)
        count = math.floor(share * len(ranked) + 1e-9) if self.high > self.low else len(ranked)
        order = torch.argsort(ranks[ranked], descending=True, stable=True)
        bits = torch.full((len(ranks),), self.high, dtype=torch.uint8)
        bits[ranked[order[count:]]] = self.low
        return bits


def filter_ranks(
    net: nn.Module, space: SearchSpace, selection: Selection, ranks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return, for every layer that can be quantised, the rank of each of its filters.

    Those are plain `Conv2d` and `Linear` layers that share neither themselves nor their weights with another name.

    Args:
        net: the narrow network.
        space: of the dense one.
        selection: the channels that the narrow one has kept.
        ranks: of the dense channels, group name -> shape (group.width,), at least 0.

    Returns:
        Layer name -> shape (filters,), relative to the width of their group; `UNRANKED` where a filter writes no
        channel of a ranked group.
    """
    length = sum(group.width for group in space.groups) + 1  # the last entry answers for -1 (never cut)
    of_channel, kept = np.full(length, UNRANKED), np.ones(length, dtype=bool)
    for name, values in ranks.items():
        group = space.by_name[name]
        place = slice(group.start, group.start + group.width)
        of_channel[place] = values.numpy() / group.width
        if name in selection:
            kept[place] = np.isin(np.arange(group.width), selection[name].numpy())
    found = {}
    for name, layer in _plain_layers(net).items():
        ids = space.axes.get(f"{name}.weight", {}).get(0)
        of_filter = np.full(len(layer.weight), UNRANKED) if ids is None else of_channel[ids[kept[ids]]]
        found[name] = torch.from_numpy(of_filter)
    return found


def _plain_layers(net: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    named = list(net.named_modules(remove_duplicate=False))
    uses = Counter(id(each) for _, each in named)
    uses.update(id(each) for _, each in net.named_parameters(remove_duplicate=False))
    return {
        name: module
        for name, module in named
        if type(module) in (nn.Conv2d, nn.Linear) and uses[id(module)] == 1 and uses[id(module.weight)] == 1
    }


class _Quantized(nn.Module):
    """A layer whose state is codes: per filter its bits and scale, all filters of equal bits packed together.

    `weight` is what the codes stand for: a parameter, since it counts as so many, but frozen and not in the state.
    It follows when `codes` is assigned, or the state loaded.
    """

    kind: ClassVar[str]
    bits: Tensor
    scales: Tensor
    codes: Tensor
    weight: Tensor

    def __setattr__(self, name: str, value: Any) -> None:
        """Decode as soon as codes are assigned; bits and scales must be there."""
        super().__setattr__(name, value)
        if name == "codes":
            self._decode()

    @classmethod
    def encode(cls, layer: nn.Module) -> Self:
        """Return the layer that holds the codes of one that `train_rounded` has changed, which is used up."""
        parametrizations = cast(Mapping[str, Any], layer.parametrizations)
        rounding: Rounding = parametrizations["weight"][0]
        weight: Tensor = parametrizations["weight"].original.detach()
        scales = rounding.scales(weight)
        unsigned = (codes_of(weight, scales, rounding.levels) + column(rounding.levels, weight)).to(torch.int32)
        packed = [pack(unsigned[rounding.bits == each], each) for each in _widths(rounding.bits)]
        quantized = cls._like(layer, tuple(weight.shape), rounding.bits, scales)
        quantized.codes = torch.cat(packed)
        return quantized

    @classmethod
    def rebuild(cls, plain: nn.Module, structure: Mapping[str, Any]) -> Self:
        """Return a layer of the stored shape, whose tensors are then replaced."""
        shape = tuple(int(size) for size in structure["shape"])
        if len(shape) != cast(Tensor, plain.weight).ndim or min(shape) < 1:
            raise ValueError(f"weights of shape {shape} in place of those of {type(plain).__name__}")
        return cls._like(plain, shape, torch.zeros(0, dtype=torch.uint8), torch.zeros(0))

    @classmethod
    def _like(cls, plain: nn.Module, shape: tuple[int, ...], bits: Tensor, scales: Tensor) -> Self:
        """Return a layer that computes what the plain one does, with codes yet to come."""
        layer = cls(plain)
        layer.train(plain.training)
        layer.register_parameter("bias", cast("nn.Parameter | None", plain.bias))
        layer.weight = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
        layer.register_buffer("bits", bits)
        layer.register_buffer("scales", scales)
        layer.register_buffer("codes", torch.zeros(0, dtype=torch.uint8))  # last: what `_decode` waits for
        return layer

    def structure(self) -> Mapping[str, Any]:
        """Return the shape of the weights."""
        return {"shape": list(self.weight.shape)}

    def _decode(self) -> None:
        shape, per_filter = self.weight.shape, math.prod(self.weight.shape[1:])
        widths = _widths(self.bits)
        counts = [int((self.bits == width).sum()) * per_filter for width in widths]
        sizes = [packed_bytes(count, width) for count, width in zip(counts, widths, strict=True)]
        legal = all(NARROWEST <= width <= WIDEST for width in widths)
        if not legal or len(self.bits) != shape[0] or len(self.scales) != shape[0] or len(self.codes) != sum(sizes):
            raise WeightsError(
                f"{len(self.codes)} bytes of codes at widths {widths} do not make weights of shape {tuple(shape)}; "
                "the checkpoint is damaged"
            )
        steps = torch.empty(shape, dtype=self.scales.dtype, device=self.codes.device)
        for width, count, part in zip(widths, counts, self.codes.split(sizes), strict=True):
            steps[self.bits == width] = unpack(part, width, count).view(-1, *shape[1:]).to(steps.dtype)
        steps -= column(levels_of(self.bits, steps), steps)
        self.weight = nn.Parameter(steps * column(self.scales, steps), requires_grad=False)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[no-untyped-call]
        del destination[f"{prefix}weight"]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict({**state_dict, f"{prefix}weight": self.weight}, prefix, *rest)
        self._decode()


def _widths(bits: Tensor) -> list[int]:
    return [int(each) for each in bits.unique(sorted=True)]


class QuantizedConv2d(_Quantized, nn.Conv2d):
    """A `Conv2d` of any grouping whose weights are stored as codes."""

    kind = "quantized_conv2d"

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__(
            plain.in_channels,
            plain.out_channels,
            cast("tuple[int, int]", plain.kernel_size),
            cast("tuple[int, int]", plain.stride),
            cast("str | tuple[int, int]", plain.padding),
            cast("tuple[int, int]", plain.dilation),
            plain.groups,
            plain.bias is not None,
            plain.padding_mode,
            device="meta",
        )


class QuantizedLinear(_Quantized, nn.Linear):
    """A `Linear` whose weights are stored as codes."""

    kind = "quantized_linear"

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")


def coded(net: nn.Module) -> nn.Module:
    """Return a copy in which the layers that `train_rounded` has changed hold codes; it computes the same."""
    copied = copy.deepcopy(net)
    for name, module in list(copied.named_modules()):
        if parametrize.is_parametrized(module, "weight"):
            kind = QuantizedLinear if isinstance(module, nn.Linear) else QuantizedConv2d
            copied.set_submodule(name, kind.encode(module))
    return copied


def bits_per_weight(net: nn.Module) -> float:
    """Return the mean width of the codes of all quantised layers; 32 where there are none."""
    layers = [module for module in net.modules() if isinstance(module, _Quantized)]
    weights = sum(layer.weight.numel() for layer in layers)
    bits = sum(int(layer.bits.sum()) * math.prod(layer.weight.shape[1:]) for layer in layers)
    return bits / weights if weights else 32.0


def size_mb(net: nn.Module) -> float:
    """Return what the weights take when stored, in units of 10^6 bytes; running statistics are left out."""
    size = sum(each.nbytes for each in net.parameters())
    for module in net.modules():
        if isinstance(module, _Quantized):
            stored = module.bits.nbytes + module.scales.nbytes + module.codes.nbytes
            size += stored - module.weight.nbytes
    return size / MEGABYTE
