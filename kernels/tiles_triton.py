"""Owns tiles of integers in Triton: what the codes of some rows and columns stand for, before rotation and scales.

decode_triton.py writes such tiles, linear_triton.py multiplies with them. n = rows [ROWS] of a tile, c = its columns
[COLS], q = groups of codes. Offsets that grow with a whole tensor are 64-bit and scalar, those inside a tile 32-bit:
addresses cost little, and the compiler sees what may be loaded and stored together.
"""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def integers(codes_ptr, lookup_ptr, zero_ptr, row, col, stop, channels, cols, group_size, groups, row_bytes, blocks,
             size, units, chain, FAMILY: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr,
             ZEROS: tl.constexpr, GROUP: tl.constexpr, BOOKS: tl.constexpr, ONE_BLOCK: tl.constexpr,
             BY_CHANNEL: tl.constexpr, WINDOW: tl.constexpr, VECTOR: tl.constexpr, STEPS: tl.constexpr,
             SHARED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Integers of rows row.. (before stop), columns col.. (before cols) of a part; anything where there is no weight.

    -> int8 (trellis) or int32 (lut, additive) [ROWS, COLS]. row: a multiple of a unit's rows (trellis), col: of COLS.
    """
    if FAMILY == "trellis":
        v = _trellis(codes_ptr, lookup_ptr, row // (32 * VECTOR), col, units, cols, chain,
                     BITS, WINDOW, VECTOR, STEPS, SHARED, COLS)
    elif FAMILY == "additive":
        v = _additive(codes_ptr, lookup_ptr, row, col, stop, channels, cols, row_bytes, blocks, size,
                      BITS, WORDS, GROUP, BOOKS, ONE_BLOCK, BY_CHANNEL, ROWS, COLS)
    else:
        v = _lut(codes_ptr, lookup_ptr, zero_ptr, row, col, stop, cols, group_size, groups, row_bytes,
                 BITS, WORDS, ZEROS, ROWS, COLS)
    return v


@triton.jit
def _trellis(codes_ptr,   # int32 [units, BITS, cols]
             table_ptr,   # int8 [2**WINDOW], or int16 [2**WINDOW] where an entry is two weights
             u, col, units, cols, chain, BITS: tl.constexpr, WINDOW: tl.constexpr, VECTOR: tl.constexpr,
             STEPS: tl.constexpr, SHARED: tl.constexpr, COLS: tl.constexpr):
    """Unit u, int8 [32 * VECTOR, COLS]. STEPS steps are cut from the same 64 bits: a word and the one before it."""
    c = col + tl.arange(0, COLS)
    end = (tl.arange(0, 32 // STEPS) + 1) * (STEPS * BITS)           # bits of the unit up to each group's last step
    k = (end - 1) >> 5                                               # word that has that bit
    inside = (c < cols)[None, :]
    here = codes_ptr + u.to(tl.int64) * BITS * cols
    word = tl.load(here + k[:, None] * cols + c[None, :], mask=inside, other=0)            # [groups, COLS]
    before = tl.load(here + (k[:, None] - 1) * cols + c[None, :], mask=inside & (k[:, None] + u > 0), other=0)
    if u == 0:  # the chain's stream before a column's first word ends the column before it
        last = codes_ptr + (tl.cast(units, tl.int64) * BITS - 1) * cols - 1
        wrapped = tl.load(last + c, mask=(c < cols) & (c % chain > 0), other=0)            # [COLS]
        before = tl.where((k == 0)[:, None], wrapped[None, :], before)
    pair = (before.to(tl.int64) << 32) | (word.to(tl.int64) & 0xFFFFFFFF)
    pair = pair >> (32 * (k + 1) - end)[:, None]
    later = ((STEPS - 1 - tl.arange(0, STEPS)) * BITS)[None, :, None]  # bits of the group after each step
    if (STEPS - 1) * BITS + WINDOW <= 32:
        state = (pair.to(tl.uint32)[:, None, :] >> later.to(tl.uint32)) & ((1 << WINDOW) - 1)
    else:
        state = (pair[:, None, :] >> later).to(tl.int32) & ((1 << WINDOW) - 1)             # [groups, STEPS, COLS]
    state = tl.reshape(state.to(tl.int32), [32, COLS])
    if SHARED:
        table = tl.load(table_ptr + tl.arange(0, 1 << WINDOW))
        entry = tl.reshape(tl.gather(table, tl.reshape(state, [32 * COLS]), 0), [32, COLS])
    else:
        entry = tl.load(table_ptr + state)
    if VECTOR == 2:
        both = tl.join(entry.to(tl.int8), (entry >> 8).to(tl.int8))                        # [32, COLS, 2]
        entry = tl.reshape(tl.permute(both, [0, 2, 1]), [64, COLS])
    return entry


@triton.jit
def _lut(codes_ptr,       # uint8 [out_features, octets, BITS]
         values_ptr,      # int16 [2**BITS] (palette)
         zero_ptr,        # uint8 [out_features] (ZEROS = 1) or [out_features, groups] (ZEROS = 2)
         row, col, stop, cols, group_size, groups, row_bytes, BITS: tl.constexpr, WORDS: tl.constexpr,
         ZEROS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Palette (ZEROS = 0) or uniform codes, int32 [ROWS, COLS]; TOGETHER codes are cut from the same bits."""
    TOGETHER: tl.constexpr = 32 if BITS == 1 else (16 if BITS == 2 else (8 if BITS <= 4 else 4))
    r = tl.arange(0, ROWS)
    c = col + tl.arange(0, COLS)
    q = col // TOGETHER + tl.arange(0, COLS // TOGETHER)
    here = (row + r < stop)[:, None]
    stream = _stream(codes_ptr + row.to(tl.int64) * row_bytes, r[:, None] * row_bytes, (q * (TOGETHER * BITS))[None, :],
                     here, row_bytes, TOGETHER * BITS, TOGETHER * BITS, WORDS)             # [ROWS, COLS / TOGETHER]
    shift = (tl.arange(0, TOGETHER) * BITS)[None, None, :]
    code = tl.reshape((stream[:, :, None] >> shift).to(tl.int32) & ((1 << BITS) - 1), [ROWS, COLS])
    if ZEROS == 0:
        v = tl.load(values_ptr + code).to(tl.int32)
    elif ZEROS == 1:
        v = code - tl.load(zero_ptr + row + r, mask=row + r < stop, other=0).to(tl.int32)[:, None]
    else:
        at = r[:, None] * groups + (c // group_size)[None, :]
        v = code - tl.load(zero_ptr + row.to(tl.int64) * groups + at, mask=here & (c < cols)[None, :],
                           other=0).to(tl.int32)
    return v


@triton.jit
def _additive(codes_ptr,  # uint8 [out_features, octets, BITS]
              books_ptr,  # int16 [blocks, BOOKS, size, GROUP]
              row, col, stop, channels, cols, row_bytes, blocks, size, BITS: tl.constexpr, WORDS: tl.constexpr,
              GROUP: tl.constexpr, BOOKS: tl.constexpr, ONE_BLOCK: tl.constexpr, BY_CHANNEL: tl.constexpr,
              ROWS: tl.constexpr, COLS: tl.constexpr):
    """Sums of BOOKS entries, int32 [ROWS, COLS]. Whole entries are loaded where a tile's columns are whole groups."""
    WHOLE: tl.constexpr = (GROUP & (GROUP - 1) == 0) and GROUP <= COLS and not BY_CHANNEL
    WIDTH: tl.constexpr = BOOKS * BITS
    r = tl.arange(0, ROWS)
    if WHOLE:
        p = col // GROUP + tl.arange(0, COLS // GROUP)                                     # [positions of the tile]
        lane = tl.arange(0, GROUP)[None, None, :]
    else:
        at = col + tl.arange(0, COLS)                                                      # coded columns [COLS]
        if BY_CHANNEL:
            at = at % channels * (cols // channels) + at // channels
        p = at // GROUP
        lane = (at % GROUP)[None, :]
    here = (row + r < stop)[:, None] & (p * GROUP < cols)[None, :]                         # [ROWS, positions]
    book = p * 0
    if not ONE_BLOCK:
        book = (p.to(tl.int64) * blocks // tl.cdiv(cols, GROUP)).to(tl.int32) * BOOKS
    row_ptr = codes_ptr + row.to(tl.int64) * row_bytes
    if WIDTH <= 32:
        stream = _stream(row_ptr, r[:, None] * row_bytes, (p * WIDTH)[None, :], here, row_bytes, WIDTH, WIDTH, WORDS)
    for m in tl.static_range(BOOKS):
        if WIDTH <= 32:
            code = (stream >> (m * BITS)).to(tl.int32) & ((1 << BITS) - 1)
        else:
            code = _stream(row_ptr, r[:, None] * row_bytes, (p * WIDTH + m * BITS)[None, :], here, row_bytes, BITS,
                           BITS, WORDS).to(tl.int32) & ((1 << BITS) - 1)
        known = here & (code < size)                           # a code beyond a short book means zero
        entry = ((book + m)[None, :] * size + code) * GROUP
        if WHOLE:
            found = tl.load(books_ptr + entry[:, :, None] + lane, mask=known[:, :, None], other=0)
        else:
            found = tl.load(books_ptr + entry + lane, mask=known, other=0)
        if m == 0:
            v = found.to(tl.int32)
        else:
            v += found.to(tl.int32)
    return tl.reshape(v, [ROWS, COLS])


@triton.jit
def _stream(row_ptr, at, bit, here, row_bytes, STEP: tl.constexpr, NEED: tl.constexpr, WORDS: tl.constexpr):
    """int64 [ROWS, n]: bits of each row (at = its first byte [ROWS, 1]) from number `bit` [1, n] on, lowest first.

    At least NEED (up to 32) of them. `bit` is a multiple of STEP; WORDS: rows begin and end at whole 32-bit words.
    """
    if WORDS:
        w = bit >> 5
        words = row_ptr.to(tl.pointer_type(tl.int32)) + (at >> 2)
        value = tl.load(words + w, mask=here & (w * 4 < row_bytes), other=0).to(tl.int64) & 0xFFFFFFFF
        if 32 % STEP:
            value |= tl.load(words + w + 1, mask=here & (w * 4 + 4 < row_bytes), other=0).to(tl.int64) << 32
        value = value >> (bit & 31)
    else:
        b = bit >> 3
        value = tl.load(row_ptr + at + b, mask=here & (b < row_bytes), other=0).to(tl.int64)
        for i in tl.static_range(1, NEED // 8 if STEP % 8 == 0 else (NEED + 14) // 8):
            value |= tl.load(row_ptr + at + b + i, mask=here & (b + i < row_bytes), other=0).to(tl.int64) << (8 * i)
        value = value >> (bit & 7)
    return value
