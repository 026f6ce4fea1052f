"""Sign flips and block Hadamard transforms along the input channels (docs/format.md, 4). Nothing is normalized here.

Every sum of integers below 2**24 is exact in float32, so decoded integers stay exact integers.
"""
from __future__ import annotations

import torch

MAX_BLOCK = 2**15

# Part of a block done as a matrix product. Per weight, one thread, 2.5 GHz AVX-512 Xeon: 0.5 ns at 16 or 32, 1.0 ns
# at 64, 1.8 ns at 128, against 0.3 to 0.6 ns for each doubling by sums and differences.
MATRIX_BLOCK = 32


def signs(seed: int, channels: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Signs of the channels, int8 [channels] of -1 and +1: top bit of splitmix64 of seed * 2**32 + channel.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (the finalizer).
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"a rotation seed must lie in [0, 2**32), got {seed}")
    z = torch.arange(channels, dtype=torch.int64) + _signed(seed << 32) + _signed(0x9E3779B97F4A7C15)  # [channels]
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shift_right(z, 31)
    return torch.where(z < 0, -1, 1).to(device=device, dtype=torch.int8)  # [channels]


def unrotate(v: torch.Tensor, block: int, signs: torch.Tensor, taps: int = 1) -> torch.Tensor:
    """Decode direction: out[.., j] = sign[j] * sum_i v[.., i] * H[i, j] within blocks of `block` channels of a tap.

    v is [rows, taps * channels] of any signed dtype that holds the sums (float32: exact up to 2**24);
    the result is a new tensor of the same dtype. Zero sums of float inputs come back as +0.
    """
    out = hadamard(v, block)
    return out.mul_(_tiled(signs, v, taps)).add_(0)  # -0 + 0 = +0: the result is an integer, its zero has no sign


def rotate(w: torch.Tensor, block: int, signs: torch.Tensor, taps: int = 1) -> torch.Tensor:
    """Encode direction, the transpose of unrotate: unrotate(rotate(w)) = block * w. w is [rows, taps * channels]."""
    return hadamard(w * _tiled(signs, w, taps), block)


def hadamard(x: torch.Tensor, block: int) -> torch.Tensor:
    """Unnormalized Sylvester transform of consecutive blocks of the last dimension of x [rows, cols], a new tensor.

    log2(block) rounds of sums and differences on a [block, rows * blocks] copy, where every round is contiguous:
    the same rounds on the row-major layout have runs shorter than a vector register.
    """
    rows, cols = x.shape
    _check_block(block, cols)
    here = x.reshape(-1, block).t().clone(memory_format=torch.contiguous_format)  # [block, rows * cols / block]
    there = torch.empty_like(here)
    half = 1
    while half < block:
        run = half * here.shape[1]
        _round(here.view(-1, 2, run), there.view(-1, 2, run))
        here, there, half = there, here, 2 * half
    return here.t().reshape(rows, cols)


class Unrotation:
    """unrotate for many chunks of one part: constants and buffers are made once.

    With `small` (integers in [-256, 256]) half of the transform is a matrix product, several times faster. Such
    integers and +-1 survive the shortest formats torch may use inside a float32 product (bfloat16, TF32) and the
    sums are exact in its float32 accumulator, so the result does not depend on the precision the host has set.
    """

    def __init__(self, block: int, seed: int, channels: int, taps: int, device: torch.device, small: bool):
        _check_block(block, channels)
        self._block = block
        self._sign = signs(seed, channels, device).to(torch.float32).repeat(taps)  # [taps * channels]
        self._zero = torch.zeros((), device=device)
        self._matrix = hadamard_matrix(min(block, MATRIX_BLOCK), device) if small else None
        self._buffers: tuple[torch.Tensor, ...] = ()

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        """float32 [rows, taps * channels], overwritten -> the same shape; valid until the next call."""
        if self._matrix is None:
            return self._signed(hadamard(v, self._block))
        half = self._matrix.shape[0]
        v = v.reshape(-1, half)                                                    # [rows * cols / half, half]
        if not self._buffers or self._buffers[0].shape != v.shape:
            self._buffers = (torch.empty_like(v), torch.empty_like(v))
        here, there = torch.mm(v, self._matrix, out=self._buffers[0]), self._buffers[1]
        while half < self._block:
            _round(here.view(-1, 2, half), there.view(-1, 2, half))
            here, there, half = there, here, 2 * half
        return self._signed(here.view(-1, self._sign.numel()))

    def _signed(self, v: torch.Tensor) -> torch.Tensor:
        # 0 + v * sign: one pass, and no -0 (an integer's zero has no sign)
        return torch.addcmul(self._zero, v, self._sign, out=v)


def hadamard_matrix(block: int, device: torch.device | str | None = None, dtype=torch.float32) -> torch.Tensor:
    """Sylvester matrix [block, block] with entries (-1)**popcount(i & j)."""
    _check_block(block, block)
    matrix = torch.ones(1, 1, dtype=dtype)  # [1, 1]
    while matrix.shape[0] < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])  # doubles
    return matrix.to(device)


def _round(pairs: torch.Tensor, out: torch.Tensor) -> None:
    """Sum and difference of [n, 0, run] and [n, 1, run]."""
    torch.add(pairs[:, 0], pairs[:, 1], out=out[:, 0])
    torch.sub(pairs[:, 0], pairs[:, 1], out=out[:, 1])


def _tiled(signs: torch.Tensor, like: torch.Tensor, taps: int) -> torch.Tensor:
    if like.shape[-1] != taps * signs.numel():
        raise ValueError(f"rotation needs taps * channels columns, got {like.shape[-1]} columns "
                         f"for {taps} taps of {signs.numel()} channels")
    return signs.to(device=like.device, dtype=like.dtype).repeat(taps)  # [taps * channels]


def _check_block(block: int, cols: int) -> None:
    if block < 1 or block > MAX_BLOCK or block & (block - 1):
        raise ValueError(f"a Hadamard block must be a power of two up to {MAX_BLOCK}, got {block}")
    if cols % block:
        raise ValueError(f"a Hadamard block must divide the channels, got block {block} for {cols} columns")


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _shift_right(z: torch.Tensor, bits: int) -> torch.Tensor:
    return (z >> bits) & (2 ** (64 - bits) - 1)  # logical, not arithmetic
