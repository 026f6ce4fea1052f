"""One coded weight in memory: the stored bytes, views of its sections, decoding to the logical shape."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from ..kernels.dispatch import decode_part
from ..kernels.linear import can_fuse
from ..kernels.parts import AdditivePart, LutPart, Part, Scales, TrellisPart
from .errors import FormatError
from .layout import ADDITIVE, LUT, Kind, Layout, PartHead

BRANCH_ROWS = 512                          # of a low-rank branch's product at once: 21 MB for SDXL's widest layer


class Tables(dict):
    """Shared trellis tables, id -> int8 [2**window, vector]; keeps one copy per device, not one per weight."""

    def __init__(self, tables: Mapping[int, torch.Tensor] = ()):
        super().__init__(tables)
        self._copies: dict[tuple[int, torch.device], torch.Tensor] = {}

    def on(self, identity: int, device: torch.device) -> torch.Tensor:
        """The table on a device."""
        table = self[identity]
        if table.device == device:
            return table
        if (identity, device) not in self._copies:
            self._copies[identity, device] = table.to(device)
        return self._copies[identity, device]


@dataclass(frozen=True, eq=False)
class CodedWeight:
    """A weight as stored. Parts are views into `blob`, so the blob is all the memory it takes."""

    blob: torch.Tensor                     # uint8 [nbytes], on any device
    layout: Layout
    tables: Tables

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape: (out, in) or (out, in, kh, kw)."""
        return self.layout.shape

    @property
    def numel(self) -> int:
        """Weights coded."""
        return math.prod(self.layout.shape)

    @property
    def source_dtype(self) -> torch.dtype:
        """dtype in the source checkpoint."""
        return self.layout.source_dtype

    @property
    def device(self) -> torch.device:
        """Where the blob is."""
        return self.blob.device

    @property
    def nbytes(self) -> int:
        """Stored bytes, record and padding included; shared tables are not."""
        return self.layout.nbytes

    @property
    def bits(self) -> float:
        """Stored bits per weight, everything in the blob counted."""
        return 8 * self.nbytes / self.numel

    @cached_property
    def parts(self) -> tuple[tuple[int, int, str, Part], ...]:
        """(first input channel, end, name of the spec, part), in order of channels."""
        return bind(self.layout, self.blob, self.tables)

    @cached_property
    def branch(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Down [rank, taps * in] and up [out, rank] of a low-rank branch, float16 views; None without one."""
        found = [self.blob[start:stop].view(torch.float16).view(shape) for start, stop, shape in self.layout.branch]
        return (found[0], found[1]) if found else None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> CodedWeight:
        """The same weight on another device; itself where it is there already."""
        blob = self.blob.to(device, non_blocking=non_blocking)
        return self if blob is self.blob else CodedWeight(blob, self.layout, self.tables)

    def decode(self, dtype: torch.dtype = torch.float32, start: int = 0, stop: int | None = None,
               device: torch.device | str | None = None, memory_format: torch.memory_format = torch.contiguous_format,
               backend: str | None = None) -> torch.Tensor:
        """Rows start..stop of the weight in its logical shape, decoded where the blob is (or on `device`).

        memory_format: for convolutions; torch.channels_last is how codes are ordered and costs nothing.
        """
        if device is not None and self.blob.device != torch.device(device):
            return self.to(device).decode(dtype, start, stop, None, memory_format, backend)
        matrix = self.decode_matrix(dtype, start, stop, backend)
        return shaped(matrix, self.shape).contiguous(memory_format=memory_format)   # [rows, in] or [rows, in, kh, kw]

    def decode_matrix(self, dtype: torch.dtype = torch.float32, start: int = 0, stop: int | None = None,
                      backend: str | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """Rows start..stop as codes are ordered, column `tap * in + channel` -> [rows, taps * in] in dtype.

        out: a contiguous matrix of that shape and dtype, on the blob's device, to write to.
        """
        stop = self.shape[0] if stop is None else stop
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"expected rows within 0 to {self.shape[0]}, got {start} to {stop}")
        shape = stop - start, self.layout.taps, self.shape[1]
        if out is None:
            out = torch.empty(shape, dtype=dtype, device=self.device).flatten(1)    # [rows, taps * in]
        if self.branch is None:
            self.decode_into(out.view(shape), start, backend)
            return out
        maps = torch.empty(shape, device=self.device)                               # [rows, taps, in], float32
        self.decode_into(maps, start, backend)
        return out.copy_(add_branch(maps.flatten(1), *self.branch, start))

    def decode_into(self, maps: torch.Tensor, start: int = 0, backend: str | None = None) -> None:
        """Write rows start.. of all parts, without a low-rank branch, to maps [rows, kh * kw, in] on the blob's device.

        The rows and taps of maps may lie apart; its dtype is decode_part's: int8 asks for the integers.
        """
        for first, end, _, part in self.parts:
            decode_part(part, start, start + len(maps), maps.dtype, backend, maps[:, :, first:end])

    def part_to_fuse(self, x: torch.Tensor) -> Part | None:
        """The one part that kernels.linear.coded_linear multiplies x [..., in] by without decoding; None otherwise."""
        if len(self.shape) != 2 or self.branch is not None or len(self.parts) != 1 or self.source_dtype != x.dtype:
            return None
        part = self.parts[0][3]
        return part if can_fuse(part, x[..., 0].numel(), x.dtype, x.device) is None else None


def shaped(matrix: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Rows of a matrix [rows, taps * in] of a weight of this logical shape -> a view of them [rows, in, ...].

    A convolution's view has the strides of torch.channels_last.
    """
    if len(shape) == 2:
        return matrix
    return matrix.view(len(matrix), *shape[2:], shape[1]).permute(0, 3, 1, 2)       # [rows, in, kh, kw]


def join(pieces: list[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """Matrices [rows, taps * channels] of the parts of a weight of this shape -> one, [rows, taps * in]."""
    if len(pieces) == 1:
        return pieces[0]
    rows, taps = len(pieces[0]), math.prod(shape[2:])
    maps = [piece.view(rows, taps, piece.shape[1] // taps) for piece in pieces]
    return torch.cat(maps, 2).flatten(1)


def add_branch(matrix: torch.Tensor, down: torch.Tensor, up: torch.Tensor, start: int = 0) -> torch.Tensor:
    """matrix, float32, rows start.. of a weight, plus those rows of up @ down, in place -> matrix [rows, cols].

    Whole blocks of rows are multiplied whichever are wanted, so that the same row always comes out the same.
    """
    stop, down = start + len(matrix), down.float()
    for first in range(start - start % BRANCH_ROWS, stop, BRANCH_ROWS):
        block = up[first:first + BRANCH_ROWS].float() @ down                        # [at most BRANCH_ROWS, cols]
        low, high = max(first, start), min(first + BRANCH_ROWS, stop)
        matrix[low - start:high - start] += block[low - first:high - first]
    return matrix


def bind(layout: Layout, blob: torch.Tensor, tables: Mapping[int, torch.Tensor]
         ) -> tuple[tuple[int, int, str, Part], ...]:
    """Views of a blob's sections as decoder parts, copy-free.

    blob: uint8 [layout.nbytes], its storage offset a multiple of 4 (the Reader sees to it).
    """
    if not isinstance(tables, Tables):
        tables = Tables(tables)
    return tuple((head.start, head.stop, head.kind, _part(layout, index, head, blob, tables))
                 for index, head in enumerate(layout.parts))


def section_views(layout: Layout, index: int, blob: torch.Tensor) -> dict[Kind, torch.Tensor]:
    """The sections of one part, shaped; U32 words come as int32."""
    return {kind: blob[start:stop].view(_VIEW[dtype]).view(shape)
            for kind, (start, stop, dtype, shape) in layout.views[index].items()}


_VIEW = {0: torch.uint8, 2: torch.int16, 4: torch.int32, 5: torch.float16}


def _part(layout: Layout, index: int, head: PartHead, blob: torch.Tensor, tables: Tables) -> Part:
    views = section_views(layout, index, blob)
    scales = Scales(gain=head.gain, row=views.get(Kind.row_scales), group=views.get(Kind.group_scales),
                    group_size=head.group if head.family == LUT else 0, col=views.get(Kind.col_scales))
    common = {"out_features": layout.shape[0], "channels": head.channels, "taps": layout.taps, "scales": scales,
              "codes": views[Kind.codes], "rotation": head.block, "rotation_seed": head.seed}
    if head.family == LUT:
        return LutPart(bits=head.bits, values=views.get(Kind.codebooks), zero_points=views.get(Kind.zero_points),
                       **common)
    if head.family == ADDITIVE:
        return AdditivePart(bits=head.bits, group=head.group, codebooks=views[Kind.codebooks],
                            order=head.order, **common)
    if head.table_id not in tables:
        raise FormatError(f"a weight of shape {list(layout.shape)} needs the shared table {head.table_id:08x}, which "
                          f"is not there: the file is incomplete")
    table = tables.on(head.table_id, blob.device)
    if tuple(table.shape) != (1 << head.window, head.vector):
        raise FormatError(f"a weight of shape {list(layout.shape)} has a trellis window of {head.window} bits and "
                          f"{head.vector} weights a step, its table {head.table_id:08x} is {list(table.shape)}")
    return TrellisPart(window=head.window, step_bits=head.bits, vector=head.vector, chain=head.group, table=table,
                       **common)
