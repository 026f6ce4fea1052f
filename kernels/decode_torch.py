"""Decoding in plain torch, on any device, bitwise equal to reference.py. Works through rows in chunks.

Integers of a chunk are gathered into one float32 buffer; rotation and scales follow on the same buffer.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .lookup import LUT_CODES, Scratch, lookup, palette_rows, trellis_lookup
from .packing import UNIT_STEPS, unpack_codes
from .parts import AdditivePart, LutPart, Part, TrellisPart
from .rotation import Unrotation

# Weights decoded at once. CPU: the float32 buffer and the indices should stay in the L2/L3 caches; below 2**16 the
# 2 us a torch call costs show. Elsewhere: enough to fill a large GPU, 64 MB of float32.
CPU_CHUNK = 2**18
DEVICE_CHUNK = 2**24

Integers = Callable[[int, int], torch.Tensor]  # rows low, high -> float32 [high - low, cols], valid until the next call


def decode(part: Part, start: int, stop: int, out: torch.Tensor) -> None:
    """Write rows start..stop of a part to out [stop - start, taps, channels], strided: weights, or int8 integers."""
    integers = _FAMILIES[type(part)](part, Scratch(part.codes.device))
    finish = None if out.dtype == torch.int8 else Finish.of(part)
    for low, high in row_chunks(part, start, stop):
        v, here = integers(low, high), out[low - start : high - start]
        if finish is None:
            here.copy_(v.view(here.shape))
        else:
            finish.write(v, low, here)


def row_chunks(part: Part, start: int, stop: int):
    """Ranges (low, high) that cover start..stop and break at whole trellis units."""
    aligned = UNIT_STEPS * part.vector if isinstance(part, TrellisPart) else 1
    chunk = CPU_CHUNK if part.codes.device.type == "cpu" else DEVICE_CHUNK
    step = max(1, chunk // (part.channels * part.taps * aligned)) * aligned
    for first in range(start - start % step, stop, step):
        yield max(first, start), min(first + step, stop)


def _lut(part: LutPart, scratch: Scratch) -> Integers:
    cols, bits = part.channels * part.taps, part.bits
    values = part.values
    if values is None:
        values = torch.arange(2**bits, dtype=torch.int16, device=part.codes.device)  # [2**bits]
    rows = palette_rows(values, bits)                                                # [2**(bits * k), k]

    def integers(low: int, high: int) -> torch.Tensor:
        index = _indices(part.codes[low:high], bits, LUT_CODES[bits], scratch)       # [rows, ceil(cols / 8) * 8 / k]
        v = scratch.take("integers", torch.float32, high - low, cols)                # [rows, cols]
        v.copy_(lookup(rows, index, scratch)[:, :cols])
        if part.zero_points is not None:
            zeros = part.zero_points[low:high].to(torch.float32)                     # [rows] or [rows, groups]
            _by_group_(v, zeros.view(high - low, -1), part.scales.group_size, torch.Tensor.sub_)
        return v

    return integers


def _additive(part: AdditivePart, scratch: Scratch) -> Integers:
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
        index = _indices(part.codes[low:high], part.bits, 1, scratch)[:, : groups * num_codebooks]
        if short:
            index.clamp_(max=size)  # codes without an entry read the zero row at the end of their book
        index = index.add_(offsets).unflatten(1, (groups, num_codebooks))  # [rows, groups, M]
        v = scratch.take("integers", torch.float32, high - low, groups * group)
        v.copy_(lookup(rows, index[:, :, 0], scratch))
        for m in range(1, num_codebooks):
            v += lookup(rows, index[:, :, m], scratch)
        if part.order == 0:
            return v[:, :cols]
        by_tap = scratch.take("by_tap", torch.float32, high - low, part.taps, part.channels)
        by_tap.copy_(v[:, :cols].unflatten(1, (part.channels, part.taps)).transpose(1, 2))
        return by_tap.view(high - low, cols)

    return integers


def _trellis(part: TrellisPart, scratch: Scratch) -> Integers:
    table = trellis_lookup(part.table, part.window, part.step_bits)
    cols, rows_unit, k = part.channels * part.taps, UNIT_STEPS * part.vector, table.rows.shape[1]

    def integers(low: int, high: int) -> torch.Tensor:
        first, last = low // rows_unit, -(-high // rows_unit)              # units
        pairs = _word_pairs(part, first, last)                             # int64 [units, B, cols]
        lookups = UNIT_STEPS // table.steps
        index = scratch.take("index", torch.int64, last - first, lookups, cols)
        for word, begin, end, shifts in table.reads:
            torch.bitwise_right_shift(pairs[:, word : word + 1], shifts, out=index[:, begin:end])
        index = index.bitwise_and_(table.mask).view(-1, cols)              # [units * lookups, cols]
        found = lookup(table.rows, index, scratch)                         # int8 [units * lookups, cols * k]
        v = scratch.take("integers", torch.float32, index.shape[0], k, cols)
        v.copy_(found.view(-1, cols, k).transpose(1, 2))
        return v.view(-1, cols)[low - first * rows_unit : high - first * rows_unit]

    return integers


_FAMILIES = {LutPart: _lut, AdditivePart: _additive, TrellisPart: _trellis}


def _indices(packed: torch.Tensor, bits: int, together: int, scratch: Scratch) -> torch.Tensor:
    """uint8 [rows, octets, bits] -> int64 [rows, octets * 8 / together]: `together` consecutive codes per index."""
    rows, octets, _ = packed.shape
    width = bits * together
    index = scratch.take("index", torch.int64, rows, octets * 8 // together)
    if width == 8:
        return index.copy_(packed.reshape(rows, -1))
    if bits > 7:  # an octet does not fit an int64
        return index.copy_(unpack_codes(packed, bits, octets * 8))
    octet = scratch.take("octet", torch.int64, rows, octets)
    byte = scratch.take("byte", torch.int64, rows, octets)
    octet.copy_(packed[:, :, 0])
    for i in range(1, bits):
        octet |= byte.copy_(packed[:, :, i]).bitwise_left_shift_(8 * i)
    lanes = index.view(rows, octets, 8 // together)
    for i in range(8 // together):
        torch.bitwise_right_shift(octet, i * width, out=lanes[:, :, i])
    return index.bitwise_and_(2**width - 1)


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
class Finish:
    """Rotation and the float32 products of docs/format.md section 4, in their order."""

    part: Part
    unrotation: Unrotation | None
    col: torch.Tensor | None   # float32 [cols]

    @classmethod
    def of(cls, part: Part) -> Finish:
        unrotation, col = None, part.scales.col
        if part.rotation:
            small = isinstance(part, TrellisPart)  # int8 tables
            unrotation = Unrotation(part.rotation, part.rotation_seed, part.channels, part.taps,
                                    part.codes.device, small)
        return cls(part, unrotation, None if col is None else col.to(torch.float32).repeat(part.taps))

    def write(self, v: torch.Tensor, first: int, out: torch.Tensor) -> None:
        """v float32 [rows, cols] (overwritten): the integers of rows first.. -> out [rows, taps, channels]."""
        if self.unrotation is not None:
            v = self.unrotation(v)
        in_place = out.dtype != v.dtype or (out.stride(1) != out.shape[2] and out.shape[1] > 1)
        flat = v if in_place else out.flatten(1)
        v = self._scale(v, first, v if self.col is not None else flat)
        if self.col is not None:
            v = torch.mul(v, self.col, out=flat)
        if in_place:
            out.copy_(v.view(out.shape))

    def _scale(self, v: torch.Tensor, first: int, out: torch.Tensor) -> torch.Tensor:
        scales, rows = self.part.scales, v.shape[0]
        if scales.group is not None:
            s = scales.group[first : first + rows].to(torch.float32) * scales.gain      # [rows, groups]
            _by_group_(v, s, scales.group_size, torch.Tensor.mul_)
            return v if out is v else out.copy_(v)
        s = scales.gain
        if scales.row is not None:
            s = (scales.row[first : first + rows].to(torch.float32) * scales.gain)[:, None]  # [rows, 1]
        return torch.mul(v, s, out=out)


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
