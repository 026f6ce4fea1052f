"""The int8 product in torch: rotate, round, `torch._int_mm`, scale. The reference of the other two, and the CPU's way.

On a CPU with VNNI or AMX instructions oneDNN multiplies int8 several times faster than float32.
"""
from __future__ import annotations

import functools

import torch
from torch.nn import functional as F

from . import decode_torch
from .parts import Part
from .rotation import hadamard_matrix, signs
from .small_part import small_part

# Part of a block rotated by a matrix product, the rest by sums and differences. 2048 x 1280 values in blocks of 128,
# one thread of an AVX-512 CPU: 8 ms with a matrix of 16, 7 with 32 or 64, 9 with 128, 11 by sums and differences alone.
MATRIX_BLOCK = 64
# cuBLAS takes int8 products of more than 16 rows, and inner and outer sizes that are multiples of 8.
LEAST_ROWS, MULTIPLE = 17, 8


def linear(x: torch.Tensor, part: Part, integers: torch.Tensor, bias: torch.Tensor | None, bits: int) -> torch.Tensor:
    """x [tokens, channels], integers int8 [out_features, channels] -> [tokens, out_features] in x's dtype."""
    q, scale = quantize(x, part, bits)
    y = multiply(q, integers).mul(row_scales(part))                                 # float32 [tokens, out_features]
    y.mul_(scale[:, None])
    return (y if bias is None else y.add_(bias)).to(x.dtype)


def quantize(x: torch.Tensor, part: Part, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [tokens, channels] -> (int8 of its rotated form, float32 [tokens] what each token is multiplied with)."""
    return rounded(rotated(x, part), bits)


def rotated(x: torch.Tensor, part: Part) -> torch.Tensor:
    """u = H (sign * col * x), float32 [tokens, channels], not normalized."""
    u = x.float()
    if part.scales.col is not None:
        u = u * part.scales.col
    if part.rotation:
        u = u * _signs(part.rotation_seed, part.channels, x.device)
        u = _hadamard(u, part.rotation)
    return u


def rounded(u: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """round(u / s) as int8 and s = max |u| / (2^(bits-1) - 1) by token; a token of zeros has s = 0."""
    scale = u.abs().amax(1) / (2 ** (bits - 1) - 1)                                 # [tokens]
    inverse = torch.where(scale > 0, 1 / scale, 0.0)       # NaN, infinity: whatever the integers are, the scale is NaN
    return (u * inverse[:, None]).round_().to(torch.int8), torch.where(scale.isfinite(), scale, torch.nan)


def multiply(q: torch.Tensor, integers: torch.Tensor) -> torch.Tensor:
    """int8 [tokens, channels] x int8 [out_features, channels] -> int32 [tokens, out_features]"""
    tokens, out_features = len(q), len(integers)
    if q.device.type == "cuda":
        rows, cols, inner = max(0, LEAST_ROWS - tokens), -out_features % MULTIPLE, -q.shape[1] % MULTIPLE
        if rows or cols or inner:
            q, integers = F.pad(q, (0, inner, 0, rows)), F.pad(integers, (0, inner, 0, cols))
    return torch._int_mm(q, integers.t())[:tokens, :out_features]


def row_scales(part: Part) -> torch.Tensor:
    """float32: what the integers' rows are multiplied with, [out_features] or one number for all, [1]."""
    if part.scales.row is None:
        return torch.full((1,), part.scales.gain, device=part.codes.device)
    return part.scales.row.float() * part.scales.gain


def self_test(family: str, device: torch.device) -> str | None:
    """Multiply small integers and compare: None, or why `torch._int_mm` must not be used on this machine."""
    q = (torch.arange(5 * 24, device=device).view(5, 24) % 255 - 127).to(torch.int8)
    weight = (torch.arange(40 * 24, device=device).view(40, 24) * 7 % 255 - 127).to(torch.int8)
    try:
        same = torch.equal(multiply(q, weight).cpu().long(), q.cpu().long() @ weight.cpu().long().t())
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        return f"failed its self-test for {family}: {type(error).__name__}: {error}"
    return None if same else f"failed its self-test for {family}: its products are wrong"


def compare(linear_of, family: str, device: torch.device) -> str | None:
    """Self-test of another backend's linear against this one's, float16: None, or how far apart they are."""
    for rotation in (0, 8):
        part = small_part(family, device, rotation, taps=1)
        integers = torch.empty(40, 1, 24, dtype=torch.int8, device=device)
        decode_torch.decode(part, 0, 40, integers)
        x = torch.linspace(-1, 1, 20 * 24, device=device).view(20, 24).half()
        want = linear(x.float(), part, integers.view(40, 24), None, 8)
        far = float((linear_of(x, part, integers.view(40, 24), None, 8).float() - want).abs().max() / want.abs().max())
        if not far < 1e-2:
            return f"failed its self-test for {family}: its products are {far:.1g} away from torch's"
    return None


def _hadamard(u: torch.Tensor, block: int) -> torch.Tensor:
    """Blocks of the last dimension of a contiguous u [tokens, channels], float32, transformed."""
    half = min(block, MATRIX_BLOCK)
    here = u.reshape(-1, half) @ _matrix(half, u.device)
    while half < block:
        pairs = here.view(-1, 2, half)
        here = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), 1)
        half *= 2
    return here.view(u.shape)


@functools.lru_cache(maxsize=64)
def _matrix(block: int, device: torch.device) -> torch.Tensor:
    return hadamard_matrix(block, device)


@functools.lru_cache(maxsize=4096)
def _signs(seed: int, channels: int, device: torch.device) -> torch.Tensor:
    return signs(seed, channels, device).float()
