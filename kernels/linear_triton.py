"""x times a coded part in one Triton kernel: each program decodes some rows of the weight and multiplies with all of x.

For few tokens only: every block of tokens decodes the weight again. A rotated part stays rotated; x is rotated instead,
once, and scaled to [-1, 1] row by row, so that float16 holds it whatever the column scales are. Sums are float32.
"""
from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from . import decode_torch
from .decode_triton import family_arguments, kept_signs
from .launch_triton import FAILURES, Launch
from .packing import UNIT_STEPS
from .parts import AdditivePart, LutPart, Part, TrellisPart
from .rotation import hadamard_matrix
from .small_part import small_part
from .tile_table import architecture, processors, tiles
from .tiles_triton import integers


def linear(x: torch.Tensor, part: Part, bias: torch.Tensor | None) -> torch.Tensor:
    """x float16 or bfloat16 [tokens, channels], contiguous -> [tokens, out_features]."""
    y = torch.empty(x.shape[0], part.out_features, dtype=x.dtype, device=x.device)         # [tokens, out_features]
    x, of_token = prepared(x, part)
    call, partial = launch(x, of_token, part, bias, y)
    call.run(x.device)
    if partial is not None:
        whole = partial.sum(0)
        y.copy_(whole if bias is None else whole.add_(bias))
    return y


def prepared(x: torch.Tensor, part: Part) -> tuple[torch.Tensor, torch.Tensor | None]:
    """x with column scales and rotation done on it -> (x [tokens, channels], what each row must be multiplied with).

    W = (integers H diag(sign)) diag(col) means W x = integers H (sign * col * x): float32, then x's dtype again.
    """
    if not part.rotation and part.scales.col is None:
        return x, None
    wide = x.float()
    if part.scales.col is not None:
        wide = wide * part.scales.col
    if part.rotation:
        wide = wide * kept_signs(part.rotation_seed, part.channels, x.device)
        wide = (wide.view(-1, part.rotation) @ rotation_matrix(part.rotation, x.device)).view(x.shape)
    of_token = wide.abs().amax(1).clamp_(min=torch.finfo(torch.float32).tiny)              # [tokens]
    return (wide / of_token[:, None]).to(x.dtype), of_token


@functools.lru_cache(maxsize=16)
def rotation_matrix(block: int, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """hadamard_matrix, made once."""
    return hadamard_matrix(block, device, dtype)


def launch(x: torch.Tensor, of_token: torch.Tensor | None, part: Part, bias: torch.Tensor | None, y: torch.Tensor,
           arch: str = "", programs: int = 0) -> tuple[Launch, torch.Tensor | None]:
    """The call that writes y, or where columns are split, float32 terms [splits, *y.shape] of y without its bias."""
    size, tokens = tiles(arch or architecture(x.device)), x.shape[0]
    rows = UNIT_STEPS * part.vector if isinstance(part, TrellisPart) else size.linear_rows
    block = min(size.linear_tokens, max(16, triton.next_power_of_2(tokens)))
    grid = triton.cdiv(part.out_features, rows), triton.cdiv(tokens, block)
    steps = triton.cdiv(part.channels, size.linear_cols)
    splits = max(1, min(steps, (programs or processors(x.device)) // (grid[0] * grid[1])))
    partial = torch.empty(splits, *y.shape, dtype=torch.float32, device=y.device) if splits > 1 else None
    scales, exponent = part.scales, _exponent(part)
    arguments, constants = family_arguments(part)
    arguments |= {"x_ptr": x, "y_ptr": y if partial is None else partial, "tokens": tokens, "stop": part.out_features,
                  "bias_ptr": x if bias is None else bias, "token_ptr": x if of_token is None else of_token,
                  "scale_ptr": x if scales.row is None else scales.row, "gain": scales.gain * 2.0**exponent,
                  "inside": 2.0**-exponent, "per_split": triton.cdiv(steps, splits)}
    constants |= {"ROW": scales.row is not None, "TOKEN": of_token is not None,
                  "BIAS": bias is not None and partial is None, "EXACT": exponent == 0, "ROWS": rows,
                  "COLS": size.linear_cols, "TOKENS": block}
    warps = size.linear_warps * (block // 64) if block >= 64 else size.warps    # 128 tokens spill in four warps
    return Launch(_linear, (*grid, splits), arguments, constants, warps), partial


def _exponent(part: Part) -> int:
    """Power of two that brings integers into [-1, 1], so that float16 rounds them as it would the weight; 0: exact."""
    if isinstance(part, TrellisPart) or (isinstance(part, LutPart) and part.values is None):
        return 0
    books = part.codebooks.shape[1] if isinstance(part, AdditivePart) else 1
    return 15 + (books - 1).bit_length()


def self_test(family: str, device: torch.device) -> str | None:
    """Multiply something small and compare with torch: None, or why this kernel must not be used on this machine."""
    for rotation in (0, 8):
        part = small_part(family, device, rotation, taps=1)
        x = torch.linspace(-1, 1, 5 * 24, device=device).view(5, 24).half()
        weight = torch.empty(40, 1, 24, device=device)
        decode_torch.decode(part, 0, 40, weight)
        want = x.float() @ weight.view(40, 24).t()
        try:
            far = float((linear(x, part, None).float() - want).abs().max() / want.abs().max())
        except FAILURES as error:
            return f"failed its self-test for {family}: {type(error).__name__}: {error}"
        if not far < 4e-3:
            return f"failed its self-test for {family}: its products are {far:.1g} away from torch's"
    return None


@triton.jit(do_not_specialize=("tokens", "per_split", "blocks", "size", "units", "chain"))
def _linear(codes_ptr, lookup_ptr, zero_ptr,
            x_ptr,        # [tokens, channels]
            y_ptr,        # [tokens, out_features], or float32 [splits, tokens, out_features]
            scale_ptr, bias_ptr, token_ptr, gain, inside, tokens, stop, channels, cols, per_split,
            row_bytes, blocks, size, units, chain,
            FAMILY: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr, ZEROS: tl.constexpr, GROUP: tl.constexpr,
            BOOKS: tl.constexpr, ONE_BLOCK: tl.constexpr, BY_CHANNEL: tl.constexpr, WINDOW: tl.constexpr,
            VECTOR: tl.constexpr, STEPS: tl.constexpr, SHARED: tl.constexpr, ROW: tl.constexpr, TOKEN: tl.constexpr,
            BIAS: tl.constexpr, EXACT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, TOKENS: tl.constexpr):
    row = tl.program_id(0) * ROWS
    n = row + tl.arange(0, ROWS)
    m = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    split = tl.program_id(2)
    x_row = x_ptr + m.to(tl.int64)[:, None] * cols
    sums = tl.zeros([TOKENS, ROWS], dtype=tl.float32)
    for step in tl.range(split * per_split, tl.minimum((split + 1) * per_split, tl.cdiv(cols, COLS)), num_stages=1):
        col = step * COLS
        c = col + tl.arange(0, COLS)
        v = integers(codes_ptr, lookup_ptr, zero_ptr, row, col, stop, channels, cols, 1, 1, row_bytes, blocks, size,
                     units, chain, FAMILY, BITS, WORDS, ZEROS, GROUP, BOOKS, ONE_BLOCK, BY_CHANNEL, WINDOW, VECTOR,
                     STEPS, SHARED, ROWS, COLS)
        if not EXACT:
            v = v.to(tl.float32) * inside
        x = tl.load(x_row + c[None, :], mask=(m < tokens)[:, None] & (c < cols)[None, :], other=0)
        sums = tl.dot(x, tl.trans(v.to(x_ptr.dtype.element_ty)), sums)
    if ROW:
        sums = sums * (tl.load(scale_ptr + n, mask=n < stop, other=0).to(tl.float32) * gain)[None, :]
    else:
        sums = sums * gain
    if TOKEN:
        sums = sums * tl.load(token_ptr + m, mask=m < tokens, other=0)[:, None]
    if BIAS:
        sums = sums + tl.load(bias_ptr + n, mask=n < stop, other=0).to(tl.float32)[None, :]
    y = y_ptr + (split * tokens + m).to(tl.int64)[:, None] * stop + n[None, :]
    tl.store(y, sums.to(y_ptr.dtype.element_ty), mask=(m < tokens)[:, None] & (n < stop)[None, :])
