"""Integers of a few bits each, packed into bytes without gaps."""

import numpy as np
import torch
from torch import Tensor

from pruning.base import PruningError

WIDEST = 16  # bits of a code
CHUNK = 2**18  # codes packed at a time, to bound memory; a multiple of 8, so that every chunk ends with a whole byte


def bits_for(values: int) -> int:
    """Return the number of bits of a code with `values` different values; 0 for a single value."""
    return (values - 1).bit_length()


def packed_bytes(count: int, bits: int) -> int:
    """Return the number of bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes of any shape in their order: code i takes the bits from i * bits on, its lowest bit first.

    The last byte is padded with zeros.

    Args:
        codes: integers in [0, 2 ** bits).
        bits: bits of one code, 0 to 16; codes of 0 bits are all 0 and take no bytes.

    Returns:
        uint8 on the device of the codes, shape (packed_bytes(codes.numel(), bits),).

    Raises:
        PruningError: bits or codes out of range.
    """
    _check_bits(bits)
    values = codes.detach().cpu().flatten().numpy()
    if len(values) and (values.min() < 0 or values.max() >= 2**bits):
        raise PruningError(f"codes from {values.min()} to {values.max()} do not fit into {bits} bits; take more bits")
    places = np.arange(bits, dtype=np.uint16)
    packed = [
        np.packbits((values[start : start + CHUNK, None].astype(np.uint16) >> places & 1).ravel(), bitorder="little")
        for start in range(0, len(values), CHUNK)
    ]
    return torch.from_numpy(np.concatenate(packed or [np.zeros(0, dtype=np.uint8)])).to(codes.device)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the `count` codes that `pack` packed: int32 on the same device, shape (count,).

    Raises:
        PruningError: bits out of range, or a number of bytes other than these codes take.
    """
    _check_bits(bits)
    if packed.dtype != torch.uint8 or packed.shape != (packed_bytes(count, bits),):
        raise PruningError(
            f"{count} codes of {bits} bits take {packed_bytes(count, bits)} bytes, not a {packed.dtype} tensor of "
            f"shape {tuple(packed.shape)}; the data is damaged or was packed with another number of bits"
        )
    if not bits:
        return torch.zeros(count, dtype=torch.int32, device=packed.device)
    bytes_ = packed.detach().cpu().numpy()
    weights = 1 << np.arange(bits, dtype=np.int32)
    step = CHUNK * bits // 8
    codes = [
        np.unpackbits(bytes_[start : start + step], bitorder="little")[: min(CHUNK, count - index * CHUNK) * bits]
        .reshape(-1, bits)
        .astype(np.int32)
        @ weights
        for index, start in enumerate(range(0, len(bytes_), step))
    ]
    return torch.from_numpy(np.concatenate(codes or [np.zeros(0, dtype=np.int32)])).to(packed.device)


def _check_bits(bits: int) -> None:
    if not 0 <= bits <= WIDEST:
        raise PruningError(f"a code of {bits} bits cannot be packed; give 0 to {WIDEST}")
