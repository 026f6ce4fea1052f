"""Rotation: orthogonality, exactness on integers, the sign generator's published values."""
import pytest
import torch
from vqpack.kernels import rotation


@pytest.mark.parametrize("block", [1, 2, 8, 16, 64, 128])
@pytest.mark.parametrize("taps", [1, 3])
def test_unrotate_is_the_signed_sylvester_matrix(block, taps):
    channels, rows = 2 * block, 5
    v = torch.randint(-127, 128, (rows, taps * channels)).to(torch.float32)
    sign = rotation.signs(7, channels)
    matrix = rotation.hadamard_matrix(block, dtype=torch.float64)
    expected = (v.double().view(rows, -1, block) @ matrix).view(rows, -1) * sign.double().repeat(taps)
    assert torch.equal(rotation.unrotate(v, block, sign, taps).double(), expected)


@pytest.mark.parametrize("block", [1, 16, 128])
def test_rotate_then_unrotate_is_the_block_size(block):
    w = torch.randint(-100, 100, (3, 2 * block)).to(torch.float32)
    sign = rotation.signs(3, 2 * block)
    assert torch.equal(rotation.unrotate(rotation.rotate(w, block, sign), block, sign), w * block)
    assert torch.equal(rotation.rotate(rotation.unrotate(w, block, sign), block, sign), w * block)


def test_matrix_is_sylvester_and_orthogonal():
    matrix = rotation.hadamard_matrix(16)
    for i in range(16):
        for j in range(16):
            assert matrix[i, j] == (-1) ** bin(i & j).count("1")
    assert torch.equal(matrix @ matrix.T, 16 * torch.eye(16))


@pytest.mark.parametrize("rows,block,blocks", [(1, 1, 1), (1, 16, 1), (2, 1, 3), (3, 8, 2)])
def test_arguments_are_left_alone(rows, block, blocks):
    v = torch.arange(rows * block * blocks).float().view(rows, -1) + 1
    before, sign = v.clone(), -torch.ones(block * blocks, dtype=torch.int8)
    rotation.unrotate(v, block, sign)
    rotation.rotate(v, block, sign)
    assert torch.equal(v, before)


def test_largest_integers_stay_exact():
    v = torch.full((1, 128), 127.0)
    assert rotation.unrotate(v, 128, torch.ones(128, dtype=torch.int8))[0].tolist() == [127.0 * 128] + [0.0] * 127


def test_zero_has_no_sign():
    out = rotation.unrotate(torch.zeros(2, 32), 16, -torch.ones(32, dtype=torch.int8))
    assert not torch.signbit(out).any()


def test_signs_are_splitmix64():
    def plain(seed, channel):
        mask = 2**64 - 1
        z = (seed * 2**32 + channel + 0x9E3779B97F4A7C15) & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return -1 if (z ^ z >> 31) >> 63 else 1

    for seed in (0, 1, 2**31, 2**32 - 1):
        assert rotation.signs(seed, 300).tolist() == [plain(seed, c) for c in range(300)]
    assert rotation.signs(5, 10).dtype == torch.int8


def test_refusals():
    with pytest.raises(ValueError, match="divide"):
        rotation.hadamard(torch.zeros(1, 24), 16)
    with pytest.raises(ValueError, match="power of two"):
        rotation.hadamard(torch.zeros(1, 24), 12)
    with pytest.raises(ValueError, match="3 taps"):
        rotation.unrotate(torch.zeros(1, 64), 16, rotation.signs(0, 16), 3)
    with pytest.raises(ValueError, match="seed"):
        rotation.signs(2**32, 4)
