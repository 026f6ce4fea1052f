"""Packing: exact inverse at odd sizes, and the byte and bit order docs/format.md promises."""
import pytest
import torch
from vqpack.kernels import packing


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("n", [1, 7, 8, 9, 37])
def test_codes_round_trip(bits, n):
    codes = torch.randint(0, 2**bits, (5, n), generator=torch.Generator().manual_seed(bits * 100 + n))
    packed = packing.pack_codes(codes, bits)
    assert packed.dtype == torch.uint8 and list(packed.shape) == [5, -(-n // 8), bits]
    unpacked = packing.unpack_codes(packed, bits, n)
    assert unpacked.dtype == torch.int32 and torch.equal(unpacked.long(), codes)


@pytest.mark.parametrize("bits", [1, 3, 5, 7, 8, 12, 16])
def test_eight_codes_are_one_little_endian_integer(bits):
    codes = torch.randint(0, 2**bits, (3, 8))
    for row, packed in zip(codes.tolist(), packing.pack_codes(codes, bits), strict=True):
        expected = sum(code << (i * bits) for i, code in enumerate(row)).to_bytes(bits, "little")
        assert bytes(packed[0].tolist()) == expected


@pytest.mark.parametrize("step_bits", range(1, 17))
@pytest.mark.parametrize("num_steps", [1, 31, 32, 33, 70])
def test_trellis_round_trip(step_bits, num_steps):
    steps = torch.randint(0, 2**step_bits, (num_steps, 5), generator=torch.Generator().manual_seed(step_bits))
    words = packing.pack_trellis(steps, step_bits)
    assert words.dtype == torch.int32 and list(words.shape) == [-(-num_steps // 32), step_bits, 5]
    unpacked = packing.unpack_trellis(words, step_bits, num_steps)
    assert unpacked.dtype == torch.int32 and torch.equal(unpacked.long(), steps)


@pytest.mark.parametrize("step_bits", [1, 2, 3, 7])
def test_first_trellis_step_is_in_the_highest_bits(step_bits):
    steps = torch.randint(0, 2**step_bits, (32, 2))
    words = packing.pack_trellis(steps, step_bits)
    for col in range(2):
        stream = 0
        for step in steps[:, col].tolist():
            stream = stream << step_bits | step
        expected = [stream >> 32 * (step_bits - 1 - w) & 0xFFFFFFFF for w in range(step_bits)]
        assert [w & 0xFFFFFFFF for w in words[0, :, col].tolist()] == expected


def test_refusals_name_the_numbers():
    with pytest.raises(ValueError, match="0 to 4"):
        packing.pack_codes(torch.tensor([[0, 4]]), 2)
    with pytest.raises(ValueError, match="-1 to 0"):
        packing.pack_trellis(torch.tensor([[0, -1]]), 2)
    with pytest.raises(TypeError, match="float32"):
        packing.pack_codes(torch.zeros(1, 1), 2)
    with pytest.raises(ValueError, match="got 17"):
        packing.pack_codes(torch.zeros(1, 1, dtype=torch.int32), 17)
    with pytest.raises(ValueError, match="two dimensions"):
        packing.pack_codes(torch.zeros(1, dtype=torch.int32), 3)
    with pytest.raises(ValueError, match="9 codes of 3 bits"):
        packing.unpack_codes(torch.zeros(1, 1, 3, dtype=torch.uint8), 3, 9)
    with pytest.raises(ValueError, match="33 steps of 2 bits"):
        packing.unpack_trellis(torch.zeros(1, 2, 4, dtype=torch.int32), 2, 33)
