"""Decoding in Triton, bitwise equal to reference.py: one kernel that writes tiles of rows and columns.

The Hadamard transform of a rotated part is a product of the tile with a matrix of +-1, in int8 with int32 sums, a byte
of the integers at a time: exact, and one instruction does hundreds of its sums. bfloat16 is rounded from float32 by the
store. Dispatch asks self_test before the first use.
"""
from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from . import decode_torch
from .launch_triton import FAILURES, Launch, merged
from .packing import UNIT_STEPS
from .parts import AdditivePart, Part, TrellisPart
from .rotation import hadamard_matrix, signs
from .small_part import small_part
from .tile_table import architecture, tiles
from .tiles_triton import integers

WIDEST = 2**25                    # elements from row to row of an output: 64 of them are counted in 32 bits
SHARED_WINDOW = 13                # tables up to this window are read from shared memory (8 or 16 KB)
POINTERS = ("codes_ptr", "lookup_ptr", "zero_ptr", "out_ptr", "scale_ptr", "col_ptr", "sign_ptr")  # of one part
MATRIX = 32                       # smallest matrix that an int8 product takes


def decode(part: Part, start: int, stop: int, out: torch.Tensor) -> None:
    """Write rows start..stop of a part to out [stop - start, taps, channels], strided: weights, or int8 integers."""
    if out.stride(0) > WIDEST:
        apart, out = out, torch.empty_like(out, memory_format=torch.contiguous_format)
        decode(part, start, stop, out)
        apart.copy_(out)
        return
    if part.rotation <= tiles(architecture(out.device)).cols or out.dtype == torch.int8:
        launch(part, start, stop, out).run(out.device)
        return
    finish, cols = decode_torch.Finish.of(part), part.channels * part.taps
    for low, high in decode_torch.row_chunks(part, start, stop):
        v = torch.empty(high - low, part.taps, part.channels, dtype=torch.float32, device=out.device)
        launch(part, low, high, v, scaled=False).run(out.device)
        finish.write(v.view(-1, cols), low, out[low - start : high - start])


def decode_group(parts: Sequence[Part], outs: Sequence[torch.Tensor]) -> None:
    """Write whole parts to outs [out_features, taps, channels]: those of one shape and spec by one call."""
    calls = []
    for part, out in zip(parts, outs, strict=True):
        if part.rotation > tiles(architecture(out.device)).cols or out.stride(0) > WIDEST:
            decode(part, 0, part.out_features, out)
        else:
            calls.append(launch(part, 0, part.out_features, out))
    for call in merged(calls, POINTERS):
        call.run(outs[0].device)


def launch(part: Part, start: int, stop: int, out: torch.Tensor, scaled: bool = True, arch: str = "") -> Launch:
    """The call that decodes rows start..stop to out; not scaled: integers, the rotation left alone."""
    size = tiles(arch or architecture(out.device))
    scaled = scaled and out.dtype != torch.int8
    rotated, trellis = scaled and part.rotation > 0, isinstance(part, TrellisPart)
    rows = UNIT_STEPS * part.vector if trellis else size.rows
    cols = size.cols if trellis or rotated else size.wide_cols
    walk = size.walk if rotated else 1
    arguments, constants = family_arguments(part)
    more, flags = _scale_arguments(part, scaled)
    first = start - start % rows if trellis else start
    col_blocks = triton.cdiv(part.channels * part.taps, cols)
    split = part.taps > 1 and out.stride(1) != part.channels
    arguments |= {"out_ptr": out, **more, "start": start, "first": first, "row_stride": out.stride(0),
                  "tap_stride": out.stride(1) if split else part.channels, "col_blocks": col_blocks, "stop": stop}
    arguments["table_ptr"] = part.codes     # read where calls are merged
    constants |= {**flags, "SPLIT": split, "GROUPED": False, "ROWS": rows, "COLS": cols, "TILES": walk}
    grid = (triton.cdiv(stop - first, rows * walk) * col_blocks,)
    return Launch(_decode, grid, arguments, constants, size.warps * max(1, rows * cols // 4096))


def family_arguments(part: Part) -> tuple[dict, dict]:
    """Arguments and constants of tiles_triton.integers, but for the place of the tile; absent tensors are the codes."""
    codes = part.codes
    arguments = {"codes_ptr": codes, "lookup_ptr": codes, "zero_ptr": codes, "channels": part.channels,
                 "cols": part.channels * part.taps, "row_bytes": 0, "blocks": 0, "size": 0, "units": 0, "chain": 0}
    constants = {"FAMILY": "lut", "BITS": 0, "WORDS": False, "ZEROS": 0, "GROUP": 0, "BOOKS": 0, "ONE_BLOCK": True,
                 "BY_CHANNEL": False, "WINDOW": 0, "VECTOR": 1, "STEPS": 0, "SHARED": False}
    if isinstance(part, TrellisPart):
        table = part.table if part.vector == 1 else part.table.view(torch.int16)
        arguments |= {"lookup_ptr": table, "units": codes.shape[0], "chain": part.chain}
        constants |= {"FAMILY": "trellis", "BITS": part.step_bits, "WINDOW": part.window, "VECTOR": part.vector,
                      "STEPS": steps_together(part.step_bits, part.window), "SHARED": part.window <= SHARED_WINDOW}
        return arguments, constants
    row_bytes = codes.shape[1] * part.bits
    arguments["row_bytes"] = row_bytes
    constants |= {"BITS": part.bits, "WORDS": row_bytes % 4 == 0 and codes.data_ptr() % 4 == 0}
    if isinstance(part, AdditivePart):
        blocks, books, size, group = part.codebooks.shape
        arguments |= {"lookup_ptr": part.codebooks, "blocks": blocks, "size": size}
        constants |= {"FAMILY": "additive", "GROUP": group, "BOOKS": books, "ONE_BLOCK": blocks == 1,
                      "BY_CHANNEL": part.order == 1}
    elif part.zero_points is not None:
        arguments["zero_ptr"] = part.zero_points
        constants["ZEROS"] = part.zero_points.ndim
    else:
        arguments["lookup_ptr"] = part.values
    return arguments, constants


def self_test(family: str, device: torch.device) -> str | None:
    """Decode something small and compare with torch: None, or why this kernel must not be used on this machine."""
    for rotation in (0, 8):
        part = small_part(family, device, rotation)
        want, got = (torch.full((37, 2, 24), float("nan"), device=device) for _ in range(2))
        decode_torch.decode(part, 3, 40, want)
        try:
            decode(part, 3, 40, got)
            same = torch.equal(got, want)
        except FAILURES as error:
            return f"failed its self-test for {family}: {type(error).__name__}: {error}"
        if not same:
            return f"failed its self-test for {family}: the weights differ from torch's"
    return None


@functools.cache
def steps_together(step_bits: int, window: int) -> int:
    """Trellis steps that can be cut from one word and the word before it, wherever in a unit they are."""
    steps = 32
    while steps > 1 and not all(_reach(end * steps * step_bits) >= (steps - 1) * step_bits + window
                                for end in range(1, UNIT_STEPS // steps + 1)):
        steps //= 2
    return steps


def _reach(end: int) -> int:
    """Bits before number `end` of a stream that are in the word of its last bit and in the word before that."""
    return 64 - (-end % 32)


def _scale_arguments(part: Part, scaled: bool) -> tuple[dict, dict]:
    scales, block = part.scales, part.rotation if scaled else 0
    stored = scales.row if scales.group is None else scales.group
    group_size = max(1, scales.group_size)
    arguments = {"scale_ptr": part.codes if stored is None else stored,
                 "col_ptr": part.codes if scales.col is None else scales.col,
                 "sign_ptr": part.codes, "matrix_ptr": part.codes, "gain": scales.gain, "group_size": group_size,
                 "groups": -(-part.channels * part.taps // group_size)}
    constants = {"SCALED": scaled, "ROW": scales.row is not None, "SCALE_GROUPS": scales.group is not None,
                 "COL": scales.col is not None, "BLOCK": block, "MATRIX": max(block, MATRIX), "BYTES": 1}
    if block:
        arguments |= {"sign_ptr": kept_signs(part.rotation_seed, part.channels, part.codes.device),
                      "matrix_ptr": kept_matrix(block, part.codes.device)}
        constants["BYTES"] = _bytes(part)
    return arguments, constants


def _bytes(part: Part) -> int:
    """Bytes that hold any integer of such a part: tables are int8, books and values int16, uniform needs 9 bits."""
    if isinstance(part, TrellisPart):
        return 1
    return 3 if isinstance(part, AdditivePart) and part.codebooks.shape[1] > 1 else 2


@functools.lru_cache(maxsize=4096)
def kept_signs(seed: int, channels: int, device: torch.device) -> torch.Tensor:
    """rotation.signs, int8 [channels]; kept, a model has a few bytes a channel of them."""
    return signs(seed, channels, device)


@functools.lru_cache(maxsize=64)
def kept_matrix(block: int, device: torch.device) -> torch.Tensor:
    """The Hadamard matrix of a block in int8, down the diagonal of one that is large enough to multiply with."""
    repeats = max(1, MATRIX // block)
    return torch.kron(torch.eye(repeats), hadamard_matrix(block)).to(device, torch.int8).contiguous()


# n = output rows [ROWS], c = columns [COLS], v = integers, w = weights [ROWS, COLS].


# Not specialized: what varies from call to call and tells the compiler nothing about addresses.
@triton.jit(do_not_specialize=("start", "first", "stop", "col_blocks", "blocks", "size", "units", "chain"))
def _decode(codes_ptr, lookup_ptr, zero_ptr, out_ptr, scale_ptr, col_ptr, sign_ptr, matrix_ptr, table_ptr, gain,
            group_size, groups, start, first, stop, channels, cols, row_stride, tap_stride, col_blocks,
            row_bytes, blocks, size, units, chain,
            FAMILY: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr, ZEROS: tl.constexpr, GROUP: tl.constexpr,
            BOOKS: tl.constexpr, ONE_BLOCK: tl.constexpr, BY_CHANNEL: tl.constexpr, WINDOW: tl.constexpr,
            VECTOR: tl.constexpr, STEPS: tl.constexpr, SHARED: tl.constexpr, SCALED: tl.constexpr, ROW: tl.constexpr,
            SCALE_GROUPS: tl.constexpr, COL: tl.constexpr, BLOCK: tl.constexpr, MATRIX: tl.constexpr,
            BYTES: tl.constexpr, SPLIT: tl.constexpr, GROUPED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
            TILES: tl.constexpr):
    """Rows start..stop to out [stop - start, taps, channels]; `first`: where the first tile's rows begin.

    A program walks down TILES tiles, which shares what belongs to columns. GROUPED: what differs between the parts of a
    group is in table_ptr [parts, 8], the addresses in the order of POINTERS.
    """
    pid = tl.program_id(0)
    if GROUPED:
        table = table_ptr + tl.program_id(1) * 8
        codes_ptr = _address(table, codes_ptr)
        lookup_ptr = _address(table + 1, lookup_ptr)
        zero_ptr = _address(table + 2, zero_ptr)
        out_ptr = _address(table + 3, out_ptr)
        scale_ptr = _address(table + 4, scale_ptr)
        col_ptr = _address(table + 5, col_ptr)
        sign_ptr = _address(table + 6, sign_ptr)
        gain = tl.load(table + 7).to(tl.int32).to(tl.float32, bitcast=True)
    col = pid % col_blocks * COLS
    r = tl.arange(0, ROWS)
    c = col + tl.arange(0, COLS)
    channel = c % channels
    place = c // channels * tap_stride + channel if SPLIT else c
    if BLOCK:
        i = tl.arange(0, MATRIX)  # the matrix is its own transpose, and this way round is how a product reads it
        matrix = tl.trans(tl.load(matrix_ptr + i[:, None] * MATRIX + i[None, :]))
        sign = tl.load(sign_ptr + channel, mask=c < cols, other=1).to(tl.int32)
    if SCALED and COL:
        of_col = tl.load(col_ptr + channel, mask=c < cols, other=0).to(tl.float32)         # [channels]
    for tile in tl.range(0, TILES, num_stages=1):  # overlapping them took 200 registers and spilled
        row = first + (pid // col_blocks * TILES + tile) * ROWS
        v = integers(codes_ptr, lookup_ptr, zero_ptr, row, col, stop, channels, cols, group_size, groups, row_bytes,
                     blocks, size, units, chain, FAMILY, BITS, WORDS, ZEROS, GROUP, BOOKS, ONE_BLOCK, BY_CHANNEL,
                     WINDOW, VECTOR, STEPS, SHARED, ROWS, COLS)
        here = (row + r >= start) & (row + r < stop)
        inside = here[:, None] & (c < cols)[None, :]
        if BLOCK:
            v = unrotated(v, matrix, sign, c, BLOCK, BYTES, ROWS, COLS)
        if SCALED:
            v = v.to(tl.float32)
            if SCALE_GROUPS:
                at = r[:, None] * groups + (c // group_size)[None, :]
                s = tl.load(scale_ptr + row.to(tl.int64) * groups + at, mask=inside, other=0)
                v = v * (s.to(tl.float32) * gain)                                          # [out_features, groups]
            elif ROW:
                s = tl.load(scale_ptr + row + r, mask=here, other=0).to(tl.float32) * gain
                v = v * s[:, None]                                                         # [out_features]
            else:
                v = v * gain
            if COL:
                v = v * of_col[None, :]
        out = out_ptr + (row - start).to(tl.int64) * row_stride
        tl.store(out + r[:, None] * row_stride + place[None, :], v.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _address(place, like):
    return tl.multiple_of(tl.load(place).to(like.dtype), 16)


@triton.jit
def unrotated(v, matrix, sign, c, BLOCK: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """int32 [ROWS, COLS]: integers of BYTES bytes times the Hadamard matrix and the signs [COLS] of their channels.

    All bytes but the highest are moved from 0..255 to int8's range. What that takes from every integer of a block, 128
    for each such byte, comes back where the matrix has a column of ones; its other columns sum to zero.
    """
    MATRIX: tl.constexpr = matrix.shape[0]
    v = tl.reshape(v, [ROWS * (COLS // MATRIX), MATRIX])
    sums = tl.dot((v >> (8 * (BYTES - 1))).to(tl.int8), matrix, out_dtype=tl.int32)
    for b in tl.static_range(BYTES - 2, -1, -1):
        sums = sums * 256 + tl.dot((((v >> (8 * b)) & 255) - 128).to(tl.int8), matrix, out_dtype=tl.int32)
    sums = tl.reshape(sums, [ROWS, COLS])
    if BYTES > 1:
        taken = BLOCK * 128 * (1 if BYTES == 2 else 257)
        sums += tl.where(c % BLOCK == 0, taken, 0)[None, :]
    return sums * sign[None, :]
