"""What a blob's head says, in plain integers: record, parts, section entries (docs/format.md, 2 and 3).

Touches no weight data: a layout is read from a blob's first bytes (head.py checks them), kept beside a blob on any
device, compared and pickled.
"""
from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import torch

from .errors import FormatError

MAGIC, VERSION = b"VQWEIGHT", 1
RECORD_BYTES, PART_BYTES, SECTION_BYTES, ALIGN = 64, 64, 32, 64
RECORD = struct.Struct("<8sHHHBB4IQ24s")
PART = struct.Struct("<BBBBIIfIBBBBIIII24s")
SECTION = struct.Struct("<HHBBHQQ8s")
WHOLE_WEIGHT = 65535                       # a section's part number when it belongs to no single part
MAX_PARTS = 64
MAX_GROUP = 64                             # bounds how much a blob can grow when decoded: 64 weights a bit
MAX_CHAIN = 1 << 20
MAX_RANK = 1024                            # of a low-rank branch
MAX_ROTATION = 10                          # log2 of the largest Hadamard block
EXACT = 1 << 24                            # integers up to here are exact in float32
DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint32, torch.float16, torch.bfloat16,
          torch.float32, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64)
BY_TAP, BY_CHANNEL = ORDERS = (0, 1)       # of a part's coded columns: (tap, channel), (channel, tap)
U8, I16, U32, F16 = 0, 2, 4, 5             # indices into DTYPES
LUT, ADDITIVE, TRELLIS = 1, 2, 3           # families
SPECS = {1: ("palette", LUT), 2: ("uniform", LUT), 3: ("additive", ADDITIVE), 4: ("product", ADDITIVE),
         5: ("trellis", TRELLIS)}


class Kind(IntEnum):
    """Section kinds; `table`, `activation_ranges` and `external` are reserved."""

    codes = 1
    row_scales = 2
    col_scales = 3
    zero_points = 4
    codebooks = 5
    group_scales = 6
    table = 7
    lowrank_down = 8
    lowrank_up = 9
    activation_ranges = 10
    external = 11


@dataclass(frozen=True)
class PartHead:
    """The 64 bytes of one part; field names as in docs/format.md."""

    family: int
    spec: int
    order: int
    rotation: int                          # log2 of the Hadamard block, 0 = none
    start: int
    stop: int
    gain: float
    seed: int
    bits: int
    window: int = 0
    vector: int = 0
    num_codebooks: int = 0
    group: int = 0
    blocks: int = 0
    codebook_size: int = 0
    table_id: int = 0

    @property
    def kind(self) -> str:
        """Name of the spec."""
        return SPECS[self.spec][0]

    @property
    def block(self) -> int:
        """Hadamard block in channels, 0 = none."""
        return 1 << self.rotation if self.rotation else 0

    @property
    def channels(self) -> int:
        """Input channels of the part."""
        return self.stop - self.start


@dataclass(frozen=True)
class Section:
    """Where one section lies inside the blob; shape and dtype follow from the part for the kinds we know."""

    kind: int
    part: int
    dtype: int
    required: bool
    offset: int
    length: int


@dataclass(frozen=True)
class Layout:
    """A blob's checked head."""

    shape: tuple[int, ...]                 # logical: (out, in) or (out, in, kh, kw)
    dtype: int                             # of the source weight, index into DTYPES
    nbytes: int
    parts: tuple[PartHead, ...]
    sections: tuple[Section, ...]

    @property
    def taps(self) -> int:
        """Kernel positions, 1 for a linear layer."""
        return math.prod(self.shape[2:])

    @property
    def source_dtype(self) -> torch.dtype:
        """dtype the weight had in its checkpoint."""
        return DTYPES[self.dtype]

    @cached_property
    def views(self) -> tuple[dict[Kind, tuple[int, int, int, tuple[int, ...]]], ...]:
        """For each part: kind -> (first byte, end, dtype number, shape). Kept, for decoding asks in every call."""
        out = []
        for index, part in enumerate(self.parts):
            cols = self.section(index, Kind.col_scales) is not None
            found = {}
            for kind, (dtype, shape) in section_shapes(part, self.shape[0], self.taps, cols).items():
                section = self.section(index, kind)
                found[kind] = (section.offset, section.offset + section.length, dtype, shape)
            out.append(found)
        return tuple(out)

    @cached_property
    def branch(self) -> tuple[tuple[int, int, tuple[int, int]], ...]:
        """(first byte, end, shape) of a low-rank branch's down [rank, columns] and up [out, rank]; () without one."""
        found = [self.section(WHOLE_WEIGHT, kind) for kind in (Kind.lowrank_down, Kind.lowrank_up)]
        if None in found:
            return ()
        shapes = branch_shapes(self.shape, found[1].length // (2 * self.shape[0]))
        return tuple((s.offset, s.offset + s.length, shape) for s, shape in zip(found, shapes, strict=True))

    @property
    def rank(self) -> int:
        """Of the low-rank branch, 0 without one."""
        return self.branch[0][2][0] if self.branch else 0

    def section(self, part: int, kind: Kind) -> Section | None:
        """The section of that kind, None where the part has none."""
        return next((s for s in self.sections if s.part == part and s.kind == kind), None)


def align(position: int) -> int:
    """Round up to the alignment of section data."""
    return -(-position // ALIGN) * ALIGN


def section_shapes(part: PartHead, rows: int, taps: int, col_scales: bool) -> dict[Kind, tuple[int, tuple[int, ...]]]:
    """The sections a part has, small ones first: kind -> (dtype number, shape)."""
    cols = taps * part.channels
    out: dict[Kind, tuple[int, tuple[int, ...]]] = {}
    groups = -(-cols // part.group) if part.group else 0
    grouped = part.family == LUT and part.group > 0
    out[Kind.group_scales if grouped else Kind.row_scales] = (F16, (rows, groups) if grouped else (rows,))
    if col_scales:
        out[Kind.col_scales] = (F16, (part.channels,))
    if part.kind == "uniform":
        out[Kind.zero_points] = (U8, (rows, groups) if grouped else (rows,))
    if part.kind == "palette":
        out[Kind.codebooks] = (I16, (1 << part.bits,))
    if part.family == ADDITIVE:
        out[Kind.codebooks] = (I16, (part.blocks, part.num_codebooks, part.codebook_size, part.group))
    out[Kind.codes] = _codes_shape(part, rows, cols, groups)
    return out


def branch_shapes(shape: tuple[int, ...], rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of a low-rank branch's down and up, F16; columns run over (tap, channel) of the whole weight."""
    return (rank, math.prod(shape[1:])), (shape[0], rank)


def _codes_shape(part: PartHead, rows: int, cols: int, groups: int) -> tuple[int, tuple[int, ...]]:
    if part.family == TRELLIS:
        return U32, (-(-rows // (32 * part.vector)), part.bits, cols)
    codes = groups * part.num_codebooks if part.family == ADDITIVE else cols
    return U8, (rows, -(-codes // 8), part.bits)


def byte_length(dtype: int, shape: tuple[int, ...]) -> int:
    """Bytes of an array; plain integers, so no product can overflow."""
    return math.prod(shape) * DTYPES[dtype].itemsize


def pack_head(layout: Layout) -> bytes:
    """Record, part heads and section entries as bytes; FormatError where a number does not fit its field."""
    try:
        return _pack_head(layout)
    except struct.error as error:
        raise FormatError(f"a weight of shape {list(layout.shape)} cannot be stored: {error}") from None


def _pack_head(layout: Layout) -> bytes:
    shape = tuple(layout.shape) + (1, 1) * (len(layout.shape) == 2)
    out = RECORD.pack(MAGIC, VERSION, len(layout.parts), len(layout.sections), len(layout.shape), layout.dtype, *shape,
                      layout.nbytes, b"")
    for part in layout.parts:
        out += PART.pack(part.family, part.spec, part.order, part.rotation, part.start, part.stop, part.gain, part.seed,
                         part.bits, part.window, part.vector, part.num_codebooks, part.group, part.blocks,
                         part.codebook_size, part.table_id, b"")
    for section in layout.sections:
        out += SECTION.pack(section.kind, section.part, section.dtype, int(section.required), 0, section.offset,
                            section.length, b"")
    return out


def head_length(parts: int, sections: int) -> int:
    """Bytes of record, part heads and section entries."""
    return RECORD_BYTES + PART_BYTES * parts + SECTION_BYTES * sections
