"""Decoding in Triton, bitwise equal to reference.py: one thread per column, one kernel per family.

Rotated parts leave the kernel as float32 integers; the Hadamard transform and the products then run in torch.
bfloat16 is computed in float32 and rounded by the store. Dispatch asks self_test before the first use.
"""
from __future__ import annotations

import contextlib
import subprocess

import torch
import triton
import triton.language as tl

from . import decode_torch
from .packing import UNIT_STEPS, pack_codes
from .parts import AdditivePart, LutPart, Part, Scales, TrellisPart

BLOCK_COLS = 256   # columns of one program: two float32 a thread at four warps; not tuned on a GPU yet
NUM_WARPS = 4


def decode(part: Part, start: int, stop: int, out: torch.Tensor) -> None:
    """Write rows start..stop of a part to out [stop - start, taps, channels], strided: weights, or int8 integers."""
    if not out.is_contiguous():
        out.copy_(_decoded(part, start, stop, torch.empty_like(out, memory_format=torch.contiguous_format)))
    elif out.dtype == torch.int8:
        _launch(part, start, stop, out, scaled=False)
    else:
        _decoded(part, start, stop, out)


def _decoded(part: Part, start: int, stop: int, out: torch.Tensor) -> torch.Tensor:
    if not part.rotation:
        _launch(part, start, stop, out, scaled=True)
        return out
    finish = decode_torch.Finish.of(part)
    for low, high in decode_torch.row_chunks(part, start, stop):
        integers = torch.empty(high - low, part.channels * part.taps, dtype=torch.float32, device=out.device)  # [rows, cols]
        _launch(part, low, high, integers, scaled=False)
        finish.write(integers, low, out[low - start : high - start])
    return out


def self_test(family: str, device: torch.device) -> str | None:
    """Decode something small and compare with torch: None, or why this kernel must not be used on this machine."""
    part = _small_part(family, device)
    want, got = torch.empty(37, 2, 24, device=device), torch.full((37, 2, 24), float("nan"), device=device)
    decode_torch.decode(part, 3, 40, want)
    try:
        decode(part, 3, 40, got)
        same = torch.equal(got, want)
    except (triton.TritonError, subprocess.SubprocessError, RuntimeError, ValueError, TypeError, AttributeError,
            ImportError, OSError) as error:  # no compiler, no driver, no libcuda.so: what machines are known to lack
        return f"failed its self-test for {family}: {type(error).__name__}: {error}"
    return None if same else f"failed its self-test for {family}: the weights differ from torch's"


def _small_part(family: str, device: torch.device) -> Part:
    generator = torch.Generator().manual_seed(1)

    def integers(low: int, high: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator).to(device, dtype)

    scales = Scales(0.03125, row=integers(1, 99, 40, dtype=torch.float16), col=integers(1, 9, 24, dtype=torch.float16))
    if family == "lut":
        codes = pack_codes(integers(0, 8, 40, 48, dtype=torch.int32), 3)
        return LutPart(40, 24, 2, 3, codes, scales, values=integers(-99, 99, 8, dtype=torch.int16))
    if family == "additive":
        codes = pack_codes(integers(0, 64, 40, 24, dtype=torch.int32), 6)
        return AdditivePart(40, 24, 2, 6, 4, codes, integers(-99, 99, 3, 2, 64, 4, dtype=torch.int16), scales)
    codes = integers(-2**31, 2**31, 1, 5, 48, dtype=torch.int32)
    return TrellisPart(40, 24, 2, 8, 5, 2, 3, codes, integers(-127, 128, 256, 2, dtype=torch.int8), scales)


def _launch(part: Part, start: int, stop: int, out: torch.Tensor, scaled: bool) -> None:
    cols = part.channels * part.taps
    col_blocks = triton.cdiv(cols, BLOCK_COLS)
    ends = (start, stop, part.channels, cols, col_blocks)
    scales, flags = _scale_arguments(part.scales, part.codes, cols, scaled)
    with _on(part.codes.device):
        if isinstance(part, TrellisPart):
            unit_rows = UNIT_STEPS * part.vector
            first = start // unit_rows
            units = -(-stop // unit_rows) - first
            _trellis_kernel[(units * col_blocks,)](
                part.codes, part.table, out, *scales, *ends, first, part.codes.shape[0], part.chain,
                WINDOW=part.window, STEP_BITS=part.step_bits, VECTOR=part.vector, **flags)
        elif isinstance(part, AdditivePart):
            blocks, num_codebooks, size, group = part.codebooks.shape
            _additive_kernel[((stop - start) * col_blocks,)](
                part.codes, part.codebooks, out, *scales, *ends, part.codes.shape[1] * part.bits, blocks, size,
                -(-cols // group), BITS=part.bits, GROUP=group, BOOKS=num_codebooks, BY_CHANNEL=part.order == 1,
                **flags)
        else:
            zeros = part.zero_points
            lookup = part.values if zeros is None else zeros
            _lut_kernel[((stop - start) * col_blocks,)](
                part.codes, lookup, out, *scales, *ends, part.codes.shape[1] * part.bits,
                zeros.shape[1] if zeros is not None and zeros.ndim == 2 else 1,
                BITS=part.bits, UNIFORM=zeros is not None, ZERO_GROUPS=zeros is not None and zeros.ndim == 2, **flags)


def _scale_arguments(scales: Scales, filler: torch.Tensor, cols: int, scaled: bool) -> tuple[tuple, dict]:
    """(row or group pointer, col pointer, gain, group size, groups) and the constexpr flags all kernels share.

    filler stands in for an absent tensor; its flag keeps it from being read.
    """
    stored = scales.row if scales.group is None else scales.group
    group_size = max(1, scales.group_size)
    arguments = (filler if stored is None else stored, filler if scales.col is None else scales.col,
                 scales.gain, group_size, -(-cols // group_size))
    return arguments, {"SCALED": scaled, "ROW": scales.row is not None, "SCALE_GROUPS": scales.group is not None,
                       "COL": scales.col is not None, "BLOCK": BLOCK_COLS, "num_warps": NUM_WARPS}


def _on(device: torch.device):
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


# In the kernels: n = output row, c = columns of this program, b = packed byte, s = scale.


@triton.jit
def _store(v, n, c, inside, out_ptr, scale_ptr, col_ptr, gain, group_size, groups, start, channels, cols,
           SCALED: tl.constexpr, ROW: tl.constexpr, SCALE_GROUPS: tl.constexpr, COL: tl.constexpr):
    """Integers v [BLOCK] of row n -> out, the products in the order of docs/format.md section 4."""
    w = v.to(tl.float32)
    if SCALED:
        if SCALE_GROUPS:
            s = tl.load(scale_ptr + n.to(tl.int64) * groups + c // group_size, mask=inside, other=0)  # [out, groups]
            w = w * (s.to(tl.float32) * gain)
        elif ROW:
            w = w * (tl.load(scale_ptr + n).to(tl.float32) * gain)                                    # [out]
        else:
            w = w * gain
        if COL:
            w = w * tl.load(col_ptr + c % channels, mask=inside, other=0).to(tl.float32)              # [channels]
    at = (n - start).to(tl.int64) * cols + c
    tl.store(out_ptr + at, w.to(out_ptr.dtype.element_ty), mask=inside)                               # [rows, cols]


@triton.jit
def _code(row_ptr, i, inside, row_bytes, BITS: tl.constexpr):
    """Code number i of a row of packed bytes; reads the one to three bytes it can touch."""
    bit = i * BITS
    b = bit // 8
    word = tl.load(row_ptr + b, mask=inside, other=0).to(tl.int32)
    if BITS != 8:
        word |= tl.load(row_ptr + b + 1, mask=inside & (b + 1 < row_bytes), other=0).to(tl.int32) << 8
    if BITS > 8:
        word |= tl.load(row_ptr + b + 2, mask=inside & (b + 2 < row_bytes), other=0).to(tl.int32) << 16
    return (word >> (bit % 8)) & ((1 << BITS) - 1)


@triton.jit
def _lut_kernel(codes_ptr,      # uint8 [out_features, octets, BITS]
                lookup_ptr,     # int16 [2**BITS] values, or uint8 [out_features (, zero_groups)] zero points
                out_ptr,        # [stop - start, cols]
                scale_ptr, col_ptr, gain, group_size, groups, start, stop, channels, cols, col_blocks,
                row_bytes, zero_groups,
                BITS: tl.constexpr, UNIFORM: tl.constexpr, ZERO_GROUPS: tl.constexpr, SCALED: tl.constexpr,
                ROW: tl.constexpr, SCALE_GROUPS: tl.constexpr, COL: tl.constexpr, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    n = start + pid // col_blocks
    c = (pid % col_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = c < cols
    code = _code(codes_ptr + n.to(tl.int64) * row_bytes, c, inside, row_bytes, BITS)
    if UNIFORM:
        if ZERO_GROUPS:
            zero = tl.load(lookup_ptr + n.to(tl.int64) * zero_groups + c // group_size, mask=inside, other=0)
            v = code - zero.to(tl.int32)
        else:
            v = code - tl.load(lookup_ptr + n).to(tl.int32)
    else:
        v = tl.load(lookup_ptr + code, mask=inside, other=0).to(tl.int32)
    _store(v, n, c, inside, out_ptr, scale_ptr, col_ptr, gain, group_size, groups, start, channels, cols,
           SCALED, ROW, SCALE_GROUPS, COL)


@triton.jit
def _additive_kernel(codes_ptr,  # uint8 [out_features, octets, BITS]
                     books_ptr,  # int16 [blocks, BOOKS, size, GROUP]
                     out_ptr,    # [stop - start, cols]
                     scale_ptr, col_ptr, gain, group_size, groups, start, stop, channels, cols, col_blocks,
                     row_bytes, blocks, size, positions,
                     BITS: tl.constexpr, GROUP: tl.constexpr, BOOKS: tl.constexpr, BY_CHANNEL: tl.constexpr,
                     SCALED: tl.constexpr, ROW: tl.constexpr, SCALE_GROUPS: tl.constexpr, COL: tl.constexpr,
                     BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    n = start + pid // col_blocks
    c = (pid % col_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = c < cols
    at = c                      # coded column: (channel, tap) or as the weight's
    if BY_CHANNEL:
        at = c % channels * (cols // channels) + c // channels
    p = at // GROUP
    book = (p.to(tl.int64) * blocks // positions) * BOOKS
    v = tl.zeros([BLOCK], dtype=tl.int32)
    for m in tl.static_range(BOOKS):
        code = _code(codes_ptr + n.to(tl.int64) * row_bytes, p * BOOKS + m, inside, row_bytes, BITS)
        entry = ((book + m) * size + code) * GROUP + at % GROUP
        v += tl.load(books_ptr + entry, mask=inside & (code < size), other=0).to(tl.int32)
    _store(v, n, c, inside, out_ptr, scale_ptr, col_ptr, gain, group_size, groups, start, channels, cols,
           SCALED, ROW, SCALE_GROUPS, COL)


@triton.jit
def _trellis_kernel(words_ptr,  # int32 [units, STEP_BITS, cols]
                    table_ptr,  # int8 [2**WINDOW, VECTOR]
                    out_ptr,    # [stop - start, cols]
                    scale_ptr, col_ptr, gain, group_size, groups, start, stop, channels, cols, col_blocks,
                    first, units, chain,
                    WINDOW: tl.constexpr, STEP_BITS: tl.constexpr, VECTOR: tl.constexpr, SCALED: tl.constexpr,
                    ROW: tl.constexpr, SCALE_GROUPS: tl.constexpr, COL: tl.constexpr, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    u = first + pid // col_blocks
    c = (pid % col_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = c < cols
    for t in range(32):  # not unrolled: that took up to 25 s to compile (64 stores at VECTOR = 2)
        end = (t + 1) * STEP_BITS
        k = (end - 1) // 32
        r = u.to(tl.int64) * STEP_BITS + k  # row of words that has the step's last bit
        word = tl.load(words_ptr + r * cols + c, mask=inside, other=0).to(tl.int64)
        # The word before it: the row above, or for the first row the last word of the column before in the chain.
        above = tl.where(r > 0, r, units * STEP_BITS) - 1
        before = tl.load(words_ptr + above * cols + c - tl.where(r > 0, 0, 1), mask=inside & (r + c % chain > 0),
                         other=0).to(tl.int64)
        pair = (before << 32) | (word & 0xFFFFFFFF)
        state = ((pair >> (32 * (k + 1) - end)) & ((1 << WINDOW) - 1)).to(tl.int32)
        for i in tl.static_range(VECTOR):
            n = (u * 32 + t) * VECTOR + i
            wanted = c < tl.where((n >= start) & (n < stop), cols, 0)
            v = tl.load(table_ptr + state * VECTOR + i, mask=wanted, other=0)
            row = tl.minimum(n, stop - 1)  # a row past the end must not be asked for its scale
            _store(v, row, c, wanted, out_ptr, scale_ptr, col_ptr, gain, group_size, groups, start, channels, cols,
                   SCALED, ROW, SCALE_GROUPS, COL)
