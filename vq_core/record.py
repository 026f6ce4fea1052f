"""Blobs: decoder parts into the bytes of docs/format.md section 2, and bytes nobody vouches for back into a weight."""
from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping

import torch

from ..kernels.parts import AdditivePart, LutPart, Part, TrellisPart
from .errors import FormatError
from .head import head_bytes, parse_layout
from .layout import (
    ADDITIVE,
    DTYPES,
    EXACT,
    F16,
    MAX_PARTS,
    RECORD_BYTES,
    SPECS,
    WHOLE_WEIGHT,
    Kind,
    Layout,
    PartHead,
    Section,
    align,
    branch_shapes,
    byte_length,
    head_length,
    pack_head,
    section_shapes,
)
from .table_record import pack_table, table_id
from .weight import CodedWeight, Tables

_SPEC_NUMBERS = {name: number for number, (name, _) in SPECS.items()}


def build_blob(shape: tuple[int, ...], source_dtype: torch.dtype, parts: list[tuple[int, int, str, Part]],
               branch: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
    """The blob of one weight -> uint8 [bytes], bytes a multiple of 64.

    shape: (out, in) or (out, in, kh, kw). parts: (first input channel, end, name of the spec, part), in order of
    channels. branch: float16 down [rank, columns] and up [out, rank], whose product is added. Deterministic: the same
    parts give the same bytes. FormatError where a part does not fit the shape.
    """
    if not 1 <= len(parts) <= MAX_PARTS:
        raise FormatError(f"a weight has 1 to {MAX_PARTS} parts, got {len(parts)}")
    heads = [_head(start, stop, kind, part) for start, stop, kind, part in parts]
    arrays = [(index, kind, dtype, data)
              for index, (head, (*_, part)) in enumerate(zip(heads, parts, strict=True))
              for kind, dtype, data in _arrays(head, part, shape)] + _branch(shape, branch)
    first = head_length(len(heads), len(arrays))
    position, sections = align(first), []
    for index, kind, dtype, data in arrays:
        sections.append(Section(kind, index, dtype, True, position, data.numel()))
        position = align(position + data.numel())
    layout = Layout(tuple(shape), DTYPES.index(source_dtype), position, tuple(heads), tuple(sections))
    head_data = pack_head(layout)
    parse_layout(head_data, position, "new")
    blob = torch.zeros(position, dtype=torch.uint8)                                 # [bytes]
    blob[:first] = torch.frombuffer(bytearray(head_data), dtype=torch.uint8)
    for section, (*_, data) in zip(sections, arrays, strict=True):
        blob[section.offset:section.offset + section.length] = data
    check_values(layout, blob, "new")
    return blob


def parse_blob(blob: torch.Tensor, tables: Mapping[int, torch.Tensor], key: str) -> CodedWeight:
    """Check a blob, uint8 [bytes] on the CPU, and wrap it without copying.

    tables: id -> int8 [2**window, vector]. FormatError names the key and what is wrong; nothing is allocated before
    every length was checked.
    """
    layout = read_layout(blob, key)
    check_values(layout, blob, key)
    weight = CodedWeight(blob, layout, tables if isinstance(tables, Tables) else Tables(tables))
    check_tables(weight, key)
    return weight


def read_layout(blob: torch.Tensor, key: str) -> Layout:
    """The checked head of a blob that is in memory."""
    if blob.dtype != torch.uint8 or blob.dim() != 1:
        raise FormatError(f"weight '{key}' is no vqpack blob: expected U8 in one dimension, "
                          f"got {blob.dtype} {list(blob.shape)}")
    length = head_bytes(bytes(blob[:RECORD_BYTES].cpu().numpy()), key)
    return parse_layout(bytes(blob[:length].cpu().numpy()), blob.numel(), key)


def check_values(layout: Layout, blob: torch.Tensor, key: str) -> None:
    """FormatError where scales are not finite or books could leave the range that float32 holds exactly."""
    check_section_values(layout, lambda s: blob[s.offset:s.offset + s.length], key)


def check_section_values(layout: Layout, read: Callable[[Section], torch.Tensor], key: str) -> None:
    """As check_values; `read` gives a section's bytes, uint8 [length], so that codes need not be read."""
    for kind in (Kind.lowrank_down, Kind.lowrank_up):
        section = layout.section(WHOLE_WEIGHT, kind)
        if section is not None and not torch.isfinite(read(section).view(torch.float16)).all():
            raise FormatError(f"weight '{key}' is damaged: its {kind.name} holds NaN or Inf")
    for index, head in enumerate(layout.parts):
        for kind in (Kind.row_scales, Kind.col_scales, Kind.group_scales):
            section = layout.section(index, kind)
            if section is not None and not torch.isfinite(read(section).view(torch.float16)).all():
                raise FormatError(f"weight '{key}' is damaged: its {kind.name} hold NaN or Inf")
        if head.family == ADDITIVE and head.num_codebooks * 32768 * max(1, head.block) > EXACT:
            books = read(layout.section(index, Kind.codebooks)).view(torch.int16).to(torch.int32)
            largest = int(books.abs().max()) * head.num_codebooks * max(1, head.block)
            if largest > EXACT:
                raise FormatError(f"weight '{key}' is damaged: sums of its codebooks reach {largest}, "
                                  f"at most {EXACT} are exact")


def check_tables(weight: CodedWeight, key: str) -> None:
    """FormatError where a trellis part's table is missing or of another shape."""
    try:
        weight.parts  # noqa: B018 - binding is the check
    except FormatError as error:
        raise FormatError(f"weight '{key}': {error}") from None


def part_table(part: TrellisPart) -> torch.Tensor:
    """The packed shared table of a trellis part, uint8 [bytes]."""
    return pack_table(part.table, part.window, part.step_bits, part.vector)


def check_padding(layout: Layout, blob: torch.Tensor, key: str) -> None:
    """FormatError where a byte between sections is not zero."""
    head = head_length(len(layout.parts), len(layout.sections))
    ends = sorted([head] + [s.offset + s.length for s in layout.sections])
    for end in ends:
        if blob[end:align(end)].any():
            raise FormatError(f"weight '{key}' is damaged: padding behind byte {end} is not zero")


def _branch(shape: tuple[int, ...], branch: tuple[torch.Tensor, torch.Tensor] | None) -> list[tuple]:
    """The two sections of a low-rank branch, as _arrays gives a part's."""
    if branch is None:
        return []
    return [(WHOLE_WEIGHT, kind, F16, _bytes(kind, data, F16, size, "low-rank"))
            for kind, data, size in zip((Kind.lowrank_down, Kind.lowrank_up), branch,
                                        branch_shapes(shape, branch[1].shape[-1]), strict=True)]


def _head(start: int, stop: int, kind: str, part: Part) -> PartHead:
    number = _SPEC_NUMBERS.get(kind)
    if number is None:
        raise FormatError(f"unknown spec '{kind}': expected one of {', '.join(_SPEC_NUMBERS)}")
    if stop - start != part.channels:
        raise FormatError(f"a part of {part.channels} channels cannot stand for channels {start} to {stop}")
    rotation = part.rotation.bit_length() - 1 if part.rotation else 0
    if part.rotation and (part.rotation != 1 << rotation or not rotation):
        raise FormatError(f"rotation must be 0 or a power of two from 2 on, got {part.rotation}")
    if not math.isfinite(part.scales.gain) or abs(part.scales.gain) > 3.4e38:
        raise FormatError(f"the gain of a {kind} part must be finite in float32, got {part.scales.gain}")
    gain = struct.unpack("<f", struct.pack("<f", part.scales.gain))[0]
    return PartHead(family=SPECS[number][1], spec=number, order=getattr(part, "order", 0), rotation=rotation,
                    start=start, stop=stop, gain=gain, seed=part.rotation_seed & 0xFFFFFFFF,
                    **_family_fields(kind, part))


def _family_fields(kind: str, part: Part) -> dict[str, int]:
    if isinstance(part, LutPart) and kind in ("palette", "uniform"):
        return {"bits": part.bits, "group": part.scales.group_size if part.scales.group is not None else 0}
    if isinstance(part, AdditivePart) and kind in ("additive", "product"):
        blocks, num_codebooks, codebook_size, _ = part.codebooks.shape
        return {"bits": part.bits, "group": part.group, "blocks": blocks, "num_codebooks": num_codebooks,
                "codebook_size": codebook_size}
    if isinstance(part, TrellisPart) and kind == "trellis":
        return {"bits": part.step_bits, "window": part.window, "vector": part.vector, "group": part.chain,
                "table_id": table_id(part_table(part))}
    raise FormatError(f"spec '{kind}' cannot be stored from a {type(part).__name__}")


def _arrays(head: PartHead, part: Part, shape: tuple[int, ...]) -> list[tuple[Kind, int, torch.Tensor]]:
    scales = part.scales
    books = part.codebooks if isinstance(part, AdditivePart) else getattr(part, "values", None)
    given = {Kind.row_scales: scales.row, Kind.group_scales: scales.group, Kind.col_scales: scales.col,
             Kind.zero_points: getattr(part, "zero_points", None), Kind.codebooks: books, Kind.codes: part.codes}
    expected = section_shapes(head, shape[0], math.prod(shape[2:]), scales.col is not None)
    extra = [kind.name for kind, data in given.items() if data is not None and kind not in expected]
    if extra:
        raise FormatError(f"a {head.kind} part has no place for {', '.join(extra)}")
    return [(kind, dtype, _bytes(kind, given[kind], dtype, size, head.kind))
            for kind, (dtype, size) in expected.items()]


def _bytes(kind: Kind, data: torch.Tensor | None, dtype: int, shape: tuple[int, ...], spec: str) -> torch.Tensor:
    wanted = (DTYPES[dtype], torch.int32) if dtype == 4 else (DTYPES[dtype],)
    if data is None or data.dtype not in wanted or tuple(data.shape) != shape:
        got = "nothing" if data is None else f"{data.dtype} {list(data.shape)}"
        raise FormatError(f"{kind.name} of a {spec} part must be {wanted[-1]} {list(shape)}, got {got}")
    out = data.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    if out.numel() != byte_length(dtype, shape):
        raise FormatError(f"{kind.name} of a {spec} part has {out.numel()} bytes, expected {byte_length(dtype, shape)}")
    return out
