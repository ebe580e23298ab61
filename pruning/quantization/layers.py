"""Quantised layers, which store their weights as packed codes of a few bits."""

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

from pruning.quantization.packing import WIDEST, pack, packed_bytes, unpack
from pruning.quantization.precision import NARROWEST
from pruning.quantization.rounding import Rounding, codes_of, column, levels_of
from spaces.errors import WeightsError

MEGABYTE = 10**6


class _Quantized(nn.Module):
    """A layer whose state is codes: bits and scale per filter, and packed codes, filters of equal bits together.

    `weight` holds the decoded weights. It is a parameter, so that it is counted as one, but frozen and not part of the
    state. It is decoded again whenever `codes` is assigned or the state is loaded.
    """

    kind: ClassVar[str]
    bits: Tensor
    scales: Tensor
    codes: Tensor
    weight: Tensor

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        # Bits and scales must be assigned before the codes.
        super().__setattr__(name, value)
        if name == "codes":
            self._decode()

    @classmethod
    def encode(cls, layer: nn.Module) -> Self:
        """Return a layer with the codes of a layer that `register_rounding` changed, and with its bias."""
        parametrizations = cast(Mapping[str, Any], layer.parametrizations)
        rounding: Rounding = parametrizations["weight"][0]
        weight: Tensor = parametrizations["weight"].original.detach()
        scales = rounding.scales(weight)
        unsigned = (codes_of(weight, scales, rounding.levels) + column(rounding.levels, weight)).to(torch.int32)
        packed = [pack(unsigned[rounding.bits == width], width) for width in _bit_widths(rounding.bits)]
        quantized = cls._like(layer, tuple(weight.shape), rounding.bits, scales)
        quantized.codes = torch.cat(packed)
        return quantized

    @classmethod
    def rebuild(cls, plain: nn.Module, structure: Mapping[str, Any]) -> Self:
        """Return a layer of the stored shape, whose tensors are then replaced; see `StructuredLayer`."""
        shape = tuple(int(size) for size in structure["shape"])
        if len(shape) != cast(Tensor, plain.weight).ndim or min(shape) < 1:
            raise ValueError(f"weights of shape {shape} in place of the weights of {type(plain).__name__}")
        return cls._like(plain, shape, torch.zeros(0, dtype=torch.uint8), torch.zeros(0))

    @classmethod
    def _like(cls, plain: nn.Module, shape: tuple[int, ...], bits: Tensor, scales: Tensor) -> Self:
        """Return a layer with the hyper-parameters and bias of a plain one, and without codes yet."""
        layer = cls(plain)
        layer.train(plain.training)
        layer.register_parameter("bias", cast("nn.Parameter | None", plain.bias))
        layer.weight = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
        layer.register_buffer("bits", bits)
        layer.register_buffer("scales", scales)
        layer.register_buffer("codes", torch.zeros(0, dtype=torch.uint8))  # last, as it triggers `_decode`
        return layer

    def structure(self) -> Mapping[str, Any]:
        """Return the shape of the weights; see `StructuredLayer`."""
        return {"shape": list(self.weight.shape)}

    def _decode(self) -> None:
        shape, per_filter = self.weight.shape, math.prod(self.weight.shape[1:])
        widths = _bit_widths(self.bits)
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

    @override
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[no-untyped-call]
        del destination[f"{prefix}weight"]

    @override
    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict({**state_dict, f"{prefix}weight": self.weight}, prefix, *rest)
        self._decode()


def _bit_widths(bits: Tensor) -> list[int]:
    return [int(width) for width in bits.unique(sorted=True)]


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


def quantize(net: nn.Module) -> nn.Module:
    """Return a copy in which the layers that `register_rounding` changed store codes; its outputs are the same."""
    copied = copy.deepcopy(net)
    for name, module in list(copied.named_modules()):
        if parametrize.is_parametrized(module, "weight"):
            kind = QuantizedLinear if isinstance(module, nn.Linear) else QuantizedConv2d
            copied.set_submodule(name, kind.encode(module))
    return copied


def bits_per_weight(net: nn.Module) -> float:
    """Return the mean number of bits per weight of all quantised layers; 32 if the net has none."""
    layers = [module for module in net.modules() if isinstance(module, _Quantized)]
    weights = sum(layer.weight.numel() for layer in layers)
    bits = sum(int(layer.bits.sum()) * math.prod(layer.weight.shape[1:]) for layer in layers)
    return bits / weights if weights else 32.0


def size_mb(net: nn.Module) -> float:
    """Return the stored size of the parameters in units of 10^6 bytes; running statistics are left out."""
    size = sum(parameter.nbytes for parameter in net.parameters())
    for module in net.modules():
        if isinstance(module, _Quantized):
            stored = module.bits.nbytes + module.scales.nbytes + module.codes.nbytes
            size += stored - module.weight.nbytes
    return size / MEGABYTE
