"""Weights of a few bits: `Precision` assigns bits; `register_rounding` serves training, `quantize` storage."""

from pruning.quantization.layers import QuantizedConv2d, QuantizedLinear, bits_per_weight, quantize, size_mb
from pruning.quantization.packing import pack, unpack
from pruning.quantization.precision import Precision, filter_ranks
from pruning.quantization.rounding import Rounding, register_rounding

__all__ = [
    "Precision",
    "QuantizedConv2d",
    "QuantizedLinear",
    "Rounding",
    "bits_per_weight",
    "filter_ranks",
    "pack",
    "quantize",
    "register_rounding",
    "size_mb",
    "unpack",
]
