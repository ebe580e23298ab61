import pytest
import torch

from pruning.base import PruningError
from pruning.quantization import packing


@pytest.mark.parametrize("bits", range(17))
def test_codes_come_back_and_take_no_more_bytes_than_they_must(bits, monkeypatch):
    codes = torch.randint(0, 2**bits, (7, 13), generator=torch.Generator().manual_seed(bits))
    codes[0, 0], codes[-1, -1] = 0, 2**bits - 1
    packed = packing.pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (-(-91 * bits // 8),)
    assert torch.equal(packing.unpack(packed, bits, 91), codes.flatten().int())
    monkeypatch.setattr(packing, "CHUNK", 16)
    assert torch.equal(packing.pack(codes, bits), packed)
    assert torch.equal(packing.unpack(packed, bits, 91), codes.flatten().int())


def test_the_order_of_bits_is_fixed():
    assert packing.pack(torch.tensor([1, 2, 3, 0, 1]), 2).tolist() == [0b00111001, 0b01]
    assert packing.pack(torch.tensor([0x123, 0xABC]), 12).tolist() == [0x23, 0xC1, 0xAB]


def test_no_codes_take_no_bytes():
    assert packing.pack(torch.zeros(0, dtype=torch.int64), 3).shape == (0,)
    assert packing.unpack(torch.zeros(0, dtype=torch.uint8), 3, 0).shape == (0,)


@pytest.mark.parametrize("bits", [-1, 17])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(PruningError, match=f"of {bits} bits.*0 to 16"):
        packing.pack(torch.tensor([0]), bits)
    with pytest.raises(PruningError, match=f"of {bits} bits.*0 to 16"):
        packing.unpack(torch.zeros(1, dtype=torch.uint8), bits, 1)


@pytest.mark.parametrize("code", [-1, 8])
def test_codes_that_do_not_fit_are_refused(code):
    with pytest.raises(PruningError, match="do not fit into 3 bits"):
        packing.pack(torch.tensor([0, code]), 3)


def test_a_wrong_number_of_bytes_is_refused():
    with pytest.raises(PruningError, match="5 codes of 3 bits take 2 bytes"):
        packing.unpack(torch.zeros(3, dtype=torch.uint8), 3, 5)
