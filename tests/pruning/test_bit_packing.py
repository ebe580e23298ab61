import numpy as np
import pytest

from pruning.bit_packing import bits_for, pack, packed_bytes, unpack


@pytest.mark.parametrize("values", [1, 2, 3, 4, 5, 16, 31, 32, 33, 255, 256, 257, 1024])
def test_numbers_come_back_from_as_many_bits_as_they_need(values):
    bits = bits_for(values)
    assert bits == int(np.ceil(np.log2(values)))
    numbers = np.random.default_rng(0).integers(0, values, 77)
    data = pack(numbers, bits)
    assert (data.dtype, len(data)) == (np.uint8, packed_bytes(77, bits))
    assert (unpack(data, 77, bits) == numbers).all()


def test_bits_of_neighbours_share_a_byte():
    assert pack(np.array([1, 2, 3]), 2).tolist() == [0b111001]
    assert pack(np.array([5, 7, 1]), 3).tolist() == [0b01111101, 0]


def test_one_value_needs_no_bit_and_missing_bytes_are_zeros():
    assert pack(np.zeros(9, dtype=np.int64), 0).size == 0
    assert unpack(np.zeros(0, dtype=np.uint8), 9, 0).tolist() == [0] * 9
    assert unpack(np.array([255], dtype=np.uint8), 3, 4).tolist() == [15, 15, 0]
