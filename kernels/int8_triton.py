"""The int8 product in Triton: one kernel rotates and rounds x, one multiplies int8 matrices and scales their sums."""
from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import int8_torch
from .decode_triton import kept_signs
from .launch_triton import FAILURES, Launch
from .linear_triton import rotation_matrix
from .parts import Part
from .tile_table import architecture, tiles

TOKENS = 16                                # of x that one program rounds; the least a product takes
PLAIN_COLS = 128                           # of x at a time where nothing is rotated
EXACT = tl.constexpr(1.5 * 2**23)          # added to a float32 below 2^22, it leaves whole numbers


def linear(x: torch.Tensor, part: Part, integers: torch.Tensor, bias: torch.Tensor | None, bits: int) -> torch.Tensor:
    """x float16 or bfloat16 [tokens, channels], integers int8 [out_features, channels] -> [tokens, out_features]."""
    q = torch.empty(x.shape, dtype=torch.int8, device=x.device)                            # [tokens, channels]
    scale = torch.empty(len(x), dtype=torch.float32, device=x.device)                      # [tokens]
    y = torch.empty(len(x), part.out_features, dtype=x.dtype, device=x.device)             # [tokens, out_features]
    launch_rounding(x.contiguous(), part, bits, q, scale).run(x.device)
    launch_product(q, scale, part, integers, bias, y).run(x.device)
    return y


def launch_rounding(x: torch.Tensor, part: Part, bits: int, q: torch.Tensor, scale: torch.Tensor, arch: str = ""
                    ) -> Launch:
    """The call that writes q and scale as int8_torch.quantize gives them, up to the rounding of x's dtype."""
    block, col = part.rotation, part.scales.col
    matrix = rotation_matrix(block, x.device, x.dtype) if block else x                     # +-1, [block, block]
    arguments = {"x_ptr": x, "q_ptr": q, "scale_ptr": scale, "matrix_ptr": matrix,
                 "sign_ptr": kept_signs(part.rotation_seed, part.channels, x.device) if block else x,
                 "col_ptr": x if col is None else col, "most": float(2 ** (bits - 1) - 1), "tokens": len(x),
                 "channels": part.channels}
    constants = {"BLOCK": block, "COL": col is not None, "TOKENS": TOKENS, "COLS": block or PLAIN_COLS}
    warps = tiles(arch or architecture(x.device)).rounding_warps
    return Launch(_round, (triton.cdiv(len(x), TOKENS),), arguments, constants, warps)


def launch_product(q: torch.Tensor, scale: torch.Tensor, part: Part, integers: torch.Tensor, bias: torch.Tensor | None,
                   y: torch.Tensor, arch: str = "") -> Launch:
    """The call that writes y = row * gain * scale * (q integers^T) + bias."""
    size, row = tiles(arch or architecture(y.device)), part.scales.row
    arguments = {"q_ptr": q, "w_ptr": integers, "y_ptr": y, "scale_ptr": scale, "row_ptr": q if row is None else row,
                 "bias_ptr": q if bias is None else bias, "gain": part.scales.gain, "tokens": len(q),
                 "stop": part.out_features, "channels": part.channels, "w_stride": integers.stride(0)}
    constants = {"ROW": row is not None, "BIAS": bias is not None, "TOKENS": size.int8_tokens, "ROWS": size.int8_rows,
                 "COLS": size.int8_cols}
    grid = triton.cdiv(len(q), size.int8_tokens), triton.cdiv(part.out_features, size.int8_rows)
    return Launch(_product, grid, arguments, constants, size.int8_warps)


def self_test(family: str, device: torch.device) -> str | None:
    """None, or why these kernels must not be used on this machine."""
    try:
        return int8_torch.compare(linear, family, device)
    except FAILURES as error:
        return f"failed its self-test for {family}: {type(error).__name__}: {error}"


@triton.jit
def _values(x_ptr, col_ptr, m, start, tokens, channels, COL: tl.constexpr, COLS: tl.constexpr):
    """Columns start.. of col * x for tokens m [TOKENS, COLS]: float32 with column scales, else as they are."""
    c = start + tl.arange(0, COLS)
    inside = (m < tokens)[:, None] & (c < channels)[None, :]
    x = tl.load(x_ptr + m.to(tl.int64)[:, None] * channels + c[None, :], mask=inside, other=0)
    if COL:
        x = x.to(tl.float32) * tl.load(col_ptr + c, mask=c < channels, other=0).to(tl.float32)[None, :]
    return x


@triton.jit
def _turned(x, fit, matrix_ptr, sign_ptr, start, channels, dtype: tl.constexpr, BLOCK: tl.constexpr,
            COL: tl.constexpr, COLS: tl.constexpr):
    """float32 [TOKENS, COLS]: x, divided by fit [TOKENS] where column scales could leave its dtype, and rotated."""
    if COL:
        x = (x * fit[:, None]).to(dtype)
    if BLOCK > 0:
        c = start + tl.arange(0, COLS)
        x = x * tl.load(sign_ptr + c, mask=c < channels, other=0).to(dtype)[None, :]
        j = tl.arange(0, COLS)
        x = tl.dot(x, tl.load(matrix_ptr + j[:, None] * BLOCK + j[None, :]))
    return x.to(tl.float32)


@triton.jit(do_not_specialize=("tokens",))
def _round(x_ptr,         # [tokens, channels]
           q_ptr,         # int8 [tokens, channels]
           scale_ptr,     # float32 [tokens]
           matrix_ptr, sign_ptr, col_ptr, most, tokens, channels,
           BLOCK: tl.constexpr, COL: tl.constexpr, TOKENS: tl.constexpr, COLS: tl.constexpr):
    m = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    dtype = x_ptr.dtype.element_ty
    fit = tl.zeros([TOKENS], dtype=tl.float32)
    if COL:
        for start in range(0, channels, COLS):
            x = _values(x_ptr, col_ptr, m, start, tokens, channels, COL, COLS)
            fit = tl.maximum(fit, tl.max(tl.abs(x), 1))
        fit = tl.where(fit > 0, 1 / fit, 0.0)
    largest = tl.zeros([TOKENS], dtype=tl.float32)
    poisoned = tl.zeros([TOKENS], dtype=tl.float32)                   # NaN where a value is NaN or infinite
    for start in range(0, channels, COLS):
        x = _values(x_ptr, col_ptr, m, start, tokens, channels, COL, COLS)
        poisoned += tl.sum(x.to(tl.float32) * 0, 1)
        u = _turned(x, fit, matrix_ptr, sign_ptr, start, channels, dtype, BLOCK, COL, COLS)
        largest = tl.maximum(largest, tl.max(tl.abs(u), 1))
    scale = largest / most
    inverse = tl.where(scale > 0, 1 / scale, 0.0)
    if COL:
        scale = tl.where(fit > 0, scale / fit, 0.0)
    tl.store(scale_ptr + m, scale + poisoned, mask=m < tokens)
    for start in range(0, channels, COLS):
        c = start + tl.arange(0, COLS)
        x = _values(x_ptr, col_ptr, m, start, tokens, channels, COL, COLS)
        u = _turned(x, fit, matrix_ptr, sign_ptr, start, channels, dtype, BLOCK, COL, COLS)
        v = (u * inverse[:, None] + EXACT) - EXACT                     # rounds, halves to even
        inside = (m < tokens)[:, None] & (c < channels)[None, :]
        tl.store(q_ptr + m.to(tl.int64)[:, None] * channels + c[None, :], v.to(tl.int8), mask=inside)


@triton.jit(do_not_specialize=("tokens",))
def _product(q_ptr,       # int8 [tokens, channels]
             w_ptr,       # int8 [out_features, channels], rows w_stride apart
             y_ptr,       # [tokens, out_features]
             scale_ptr,   # float32 [tokens]
             row_ptr, bias_ptr, gain, tokens, stop, channels, w_stride,
             ROW: tl.constexpr, BIAS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    m = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    q_row = q_ptr + m.to(tl.int64)[:, None] * channels
    w_row = w_ptr + n.to(tl.int64)[None, :] * w_stride
    sums = tl.zeros([TOKENS, ROWS], dtype=tl.int32)
    for start in range(0, channels, COLS):
        c = start + tl.arange(0, COLS)
        q = tl.load(q_row + c[None, :], mask=(m < tokens)[:, None] & (c < channels)[None, :], other=0)
        w = tl.load(w_row + c[:, None], mask=(c < channels)[:, None] & (n < stop)[None, :], other=0)
        sums = tl.dot(q, w, sums)
    y = sums.to(tl.float32) * gain
    if ROW:
        y = y * tl.load(row_ptr + n, mask=n < stop, other=0).to(tl.float32)[None, :]
    y = y * tl.load(scale_ptr + m, mask=m < tokens, other=0)[:, None]
    if BIAS:
        y = y + tl.load(bias_ptr + n, mask=n < stop, other=0).to(tl.float32)[None, :]
    tl.store(y_ptr + m.to(tl.int64)[:, None] * stop + n[None, :], y.to(y_ptr.dtype.element_ty),
             mask=(m < tokens)[:, None] & (n < stop)[None, :])
