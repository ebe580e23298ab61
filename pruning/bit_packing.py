"""Small whole numbers side by side in bytes, each in as few bits as it needs."""

import numpy as np
from numpy.typing import NDArray


def bits_for(values: int) -> int:
    """Return how many bits tell `values` different values apart; 0 for a single one."""
    return (values - 1).bit_length()


def packed_bytes(count: int, bits: int) -> int:
    """Return how many bytes `pack` makes of `count` numbers."""
    return -(-count * bits // 8)


def pack(numbers: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Return numbers in [0, 2^bits) as bytes, lowest bit first; the last byte is filled up with zeros."""
    digits = (numbers.reshape(-1, 1) >> np.arange(bits)) & 1
    return np.packbits(digits.astype(np.uint8).ravel(), bitorder="little")


def unpack(data: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.int64]:
    """Return the `count` numbers that `pack` was given; missing bytes read as zeros."""
    digits = np.zeros(count * bits, dtype=np.int64)
    stored = np.unpackbits(data, bitorder="little")[: count * bits]
    digits[: len(stored)] = stored
    numbers: NDArray[np.int64] = (digits.reshape(count, bits) << np.arange(bits)).sum(axis=1)
    return numbers
