"""Decoding in plain torch, on any device, bitwise equal to reference.py. Works through rows in chunks.

Integers of a chunk are gathered straight into one float32 buffer; rotation and scales follow on the same buffer.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch

from .lookup import LUT_CODES, lookup, palette_rows, trellis_lookup
from .packing import UNIT_STEPS, unpack_codes
from .parts import AdditivePart, LutPart, Part, Scales, TrellisPart
from .rotation import signs, unrotate, unrotate_bytes

# Weights decoded at once. CPU: the float32 buffer and the indices should stay in the L2/L3 caches; below 2**16 the
# 2 us a torch call costs show. Elsewhere: enough to fill a large GPU, 64 MB of float32.
CPU_CHUNK = 2**17
DEVICE_CHUNK = 2**24


def decode(part: Part, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows start..stop of a part -> [stop - start, cols] in dtype (float32, float16 or bfloat16)."""
    device, cols = part.codes.device, part.channels * part.taps
    out = torch.empty(stop - start, cols, dtype=dtype, device=device)  # [stop - start, cols]
    integers = _FAMILIES[type(part)](part)
    finish = _Finish.of(part)
    rows_aligned = UNIT_STEPS * part.vector if isinstance(part, TrellisPart) else 1
    chunk = CPU_CHUNK if device.type == "cpu" else DEVICE_CHUNK
    step = max(1, chunk // (cols * rows_aligned)) * rows_aligned
    for first in range(start - start % step, stop, step):
        low, high = max(first, start), min(first + step, stop)
        finish.write(integers(low, high), low, out[low - start : high - start])
    return out


def _lut(part: LutPart):
    cols, bits = part.channels * part.taps, part.bits
    values = part.values
    if values is None:
        values = torch.arange(2**bits, dtype=torch.int16, device=part.codes.device)  # [2**bits]
    rows = palette_rows(values, bits)                                                # [2**(bits * k), k]

    def integers(low: int, high: int) -> torch.Tensor:
        index = _indices(part.codes[low:high], bits, LUT_CODES[bits])                # [rows, ceil(cols / 8) * 8 / k]
        v = lookup(rows, index)[:, :cols].to(torch.float32)                          # [rows, cols]
        if part.zero_points is not None:
            zeros = part.zero_points[low:high].to(torch.float32)                     # [rows] or [rows, groups]
            _by_group_(v, zeros.view(high - low, -1), part.scales.group_size, torch.Tensor.sub_)
        return v

    return integers


def _additive(part: AdditivePart):
    cols, device = part.channels * part.taps, part.codes.device
    blocks, num_codebooks, size, group = part.codebooks.shape
    groups = -(-cols // group)
    short = size < 2**part.bits
    books = torch.nn.functional.pad(part.codebooks, (0, 0, 0, 1)) if short else part.codebooks
    rows = books.reshape(-1, group)                                        # [blocks * M * K, group]
    block = torch.arange(groups, device=device) * blocks // groups         # [groups]
    book = block[:, None] * num_codebooks + torch.arange(num_codebooks, device=device)
    offsets = (book * books.shape[2]).view(-1)                             # [groups * M], first row of each book

    def integers(low: int, high: int) -> torch.Tensor:
        index = _indices(part.codes[low:high], part.bits, 1)[:, : groups * num_codebooks]
        if short:
            index = index.clamp(max=size)  # codes without an entry read the zero row at the end of their book
        index = (index + offsets).view(high - low, groups, num_codebooks)
        v = lookup(rows, index[:, :, 0]).to(torch.float32)                 # [rows, groups * group]
        for m in range(1, num_codebooks):
            v += lookup(rows, index[:, :, m])
        return v[:, :cols]

    return integers


def _trellis(part: TrellisPart):
    table = trellis_lookup(part.table, part.window, part.step_bits)
    cols, rows_unit = part.channels * part.taps, UNIT_STEPS * part.vector

    def integers(low: int, high: int) -> torch.Tensor:
        first, last = low // rows_unit, -(-high // rows_unit)              # units
        pairs = _word_pairs(part, first, last)                             # int64 [units, B, cols]
        index = torch.empty(last - first, UNIT_STEPS // table.steps, cols, dtype=torch.int64, device=pairs.device)
        for word, begin, end, shifts in table.reads:
            torch.bitwise_right_shift(pairs[:, word : word + 1], shifts, out=index[:, begin:end])
        found = lookup(table.rows, index.bitwise_and_(table.mask).view(-1, cols))  # int8 [lookups, cols * k]
        k = table.rows.shape[1]
        v = torch.empty(index.shape[0] * index.shape[1], k, cols, device=pairs.device)  # float32 [lookups, k, cols]
        v.copy_(found.view(-1, cols, k).transpose(1, 2))
        return v.view(-1, cols)[low - first * rows_unit : high - first * rows_unit]

    return integers


_FAMILIES = {LutPart: _lut, AdditivePart: _additive, TrellisPart: _trellis}


def _indices(packed: torch.Tensor, bits: int, together: int) -> torch.Tensor:
    """uint8 [rows, octets, bits] -> int64 [rows, octets * 8 / together]: `together` consecutive codes per index."""
    rows, octets, _ = packed.shape
    width = bits * together
    if width == 8:
        return packed.reshape(rows, -1).to(torch.int64)
    if bits > 7:  # an octet does not fit an int64
        return unpack_codes(packed, bits, octets * 8).to(torch.int64)
    octet = packed[:, :, 0].to(torch.int64)                                # [rows, octets]
    for byte in range(1, bits):
        octet |= packed[:, :, byte].to(torch.int64) << (8 * byte)
    index = torch.empty(rows, octets, 8 // together, dtype=torch.int64, device=packed.device)
    for i in range(8 // together):
        torch.bitwise_right_shift(octet, i * width, out=index[:, :, i])
    return index.bitwise_and_(2**width - 1).view(rows, -1)


def _word_pairs(part: TrellisPart, first: int, last: int) -> torch.Tensor:
    """int64 [units, B, cols]: each word of the units below the word before it in its chain."""
    words = part.codes[first:last]                                         # [units, B, cols]
    if first:
        before = part.codes[first - 1, -1]                                 # [cols]
    else:
        before = part.codes[-1, -1].roll(1)  # a column continues the stream of the one before it ...
        before[:: part.chain] = 0            # ... except the first of a chain
    units, step_bits, cols = words.shape
    stream = torch.cat([before.view(1, cols), words.reshape(units * step_bits, cols)]).to(torch.int64)
    return ((stream[:-1] << 32) | (stream[1:] & 0xFFFFFFFF)).view(units, step_bits, cols)


@dataclass(frozen=True)
class _Finish:
    """Rotation and the float32 products of docs/format.md section 4, in their order."""

    part: Part
    scales: Scales
    sign: torch.Tensor | None  # int8 [channels]
    col: torch.Tensor | None   # float32 [cols]

    @classmethod
    def of(cls, part: Part) -> _Finish:
        device, scales = part.codes.device, part.scales
        sign = signs(part.rotation_seed, part.channels, device) if part.rotation else None
        col = None if scales.col is None else scales.col.to(torch.float32).repeat(part.taps)
        return cls(part, scales, sign, col)

    def write(self, v: torch.Tensor, first: int, out: torch.Tensor) -> None:
        """v float32 [rows, cols] (overwritten): the integers of rows first.. -> out [rows, cols]."""
        if self.sign is not None:
            turn = unrotate_bytes if isinstance(self.part, TrellisPart) else unrotate
            v = turn(v, self.part.rotation, self.sign, self.part.taps)
        v = self._scale(v, first, out if self.col is None else v)
        if self.col is not None:
            v = torch.mul(v, self.col, out=out if out.dtype == v.dtype else v)
        if out.dtype != v.dtype:
            out.copy_(v)

    def _scale(self, v: torch.Tensor, first: int, out: torch.Tensor) -> torch.Tensor:
        scales, rows = self.scales, v.shape[0]
        if scales.group is not None:
            s = scales.group[first : first + rows].to(torch.float32) * scales.gain      # [rows, groups]
            _by_group_(v, s, scales.group_size, torch.Tensor.mul_)
            return out.copy_(v) if out.dtype == v.dtype and out is not v else v
        s = scales.gain
        if scales.row is not None:
            s = (scales.row[first : first + rows].to(torch.float32) * scales.gain)[:, None]  # [rows, 1]
        return torch.mul(v, s, out=out if out.dtype == v.dtype else v)


def _by_group_(v: torch.Tensor, values: torch.Tensor, size: int, operate_) -> None:
    """In place operate_(v, value of the column's group); v [rows, cols], values [rows, groups] (one group: all)."""
    rows, groups = values.shape
    if groups == 1:
        operate_(v, values)
        return
    whole = v.shape[1] // size
    operate_(v[:, : whole * size].view(rows, whole, size), values[:, :whole, None])
    if groups > whole:
        operate_(v[:, whole * size :], values[:, whole:])
