"""Checking a blob's head: every count, offset and length in it is derived from the shape and compared before use."""
from __future__ import annotations

import math

from . import layout as fmt
from .errors import FormatError
from .layout import Kind, Layout, PartHead, Section, align, byte_length, head_length, section_shapes


def head_bytes(record: bytes, key: str) -> int:
    """Length of the head (record, parts, section entries), from the record's 64 bytes alone."""
    if len(record) < fmt.RECORD_BYTES or record[:8] != fmt.MAGIC:
        raise FormatError(f"weight '{key}' is no vqpack blob: it does not begin with a {fmt.RECORD_BYTES}-byte "
                          f"{fmt.MAGIC.decode()} record")
    _, version, parts, sections = fmt.RECORD.unpack_from(record)[:4]
    if version != fmt.VERSION:
        raise FormatError(f"weight '{key}' has record version {version}, this program reads version {fmt.VERSION}: "
                          f"install a newer vqpack")
    return head_length(parts, sections)


def parse_layout(head: bytes, nbytes: int, key: str) -> Layout:
    """Check a head (at least head_bytes long) of a blob of `nbytes` bytes; FormatError names weight and field."""
    length = head_bytes(head, key)
    _, _, num_parts, num_sections, dims, dtype, *shape, stated, zeros = fmt.RECORD.unpack_from(head)
    _require(stated == nbytes, key, f"blob length {stated} in the record, {nbytes} bytes in the file")
    _require(length <= min(nbytes, len(head)), key, f"{num_parts} parts and {num_sections} sections do not fit into it")
    _require(1 <= num_parts <= fmt.MAX_PARTS, key, f"{num_parts} parts, expected 1 to {fmt.MAX_PARTS}")
    _require(dims in (2, 4), key, f"{dims} dimensions, expected 2 or 4")
    _require(dtype < len(fmt.DTYPES), key, f"unknown source dtype {dtype}")
    _require(min(shape) > 0 and (dims == 4 or shape[2:] == [1, 1]), key, f"impossible shape {shape}")
    _require(not any(zeros), key, "reserved bytes of the record are not zero")
    parts = tuple(_parse_part(head, fmt.RECORD_BYTES + fmt.PART_BYTES * i, key) for i in range(num_parts))
    first = fmt.RECORD_BYTES + fmt.PART_BYTES * num_parts
    sections = tuple(_parse_section(head, first + fmt.SECTION_BYTES * i, key) for i in range(num_sections))
    layout = Layout(tuple(shape[:dims]), dtype, nbytes, parts, sections)
    _check_cover(layout, key)
    for part in parts:
        _check_part(part, layout, key)
    _check_placement(layout, length, key)
    _check_sections(layout, key)
    return layout


def _require(ok: bool, key: str, message: str) -> None:
    if not ok:
        raise FormatError(f"weight '{key}' is damaged: {message}")


def _parse_part(head: bytes, offset: int, key: str) -> PartHead:
    *fields, zeros = fmt.PART.unpack_from(head, offset)
    _require(not any(zeros), key, "reserved bytes of a part are not zero")
    return PartHead(*fields)


def _parse_section(head: bytes, offset: int, key: str) -> Section:
    kind, part, dtype, flags, zero, start, length, zeros = fmt.SECTION.unpack_from(head, offset)
    _require(zero == 0 and not any(zeros) and flags in (0, 1), key, "reserved bytes or flags of a section are not zero")
    return Section(kind, part, dtype, bool(flags), start, length)


def _check_cover(layout: Layout, key: str) -> None:
    position = 0
    for part in layout.parts:
        _require(part.start == position < part.stop, key, f"a part of channels {part.start} to {part.stop} where one "
                                                          f"from {position} was expected")
        position = part.stop
    _require(position == layout.shape[1], key, f"its parts cover {position} of {layout.shape[1]} input channels")


def _check_part(part: PartHead, layout: Layout, key: str) -> None:
    if part.spec not in fmt.SPECS or part.order not in fmt.ORDERS:
        what = f"spec {part.spec}" if part.spec not in fmt.SPECS else f"column order {part.order}"
        raise FormatError(f"weight '{key}' uses {what}, which this program does not know: install a newer vqpack")
    _require(part.family == fmt.SPECS[part.spec][1], key, f"family {part.family} with spec {part.kind}")
    _require(part.order == fmt.BY_TAP or (part.family == fmt.ADDITIVE and layout.taps > 1), key,
             f"column order {part.order} in a {part.kind} part of {layout.taps} taps")
    _require(math.isfinite(part.gain), key, f"gain {part.gain}")
    _require(part.rotation <= fmt.MAX_ROTATION and part.channels % (1 << part.rotation) == 0, key,
             f"rotation in blocks of {1 << part.rotation} over {part.channels} channels")
    {fmt.LUT: _check_lut, fmt.ADDITIVE: _check_additive, fmt.TRELLIS: _check_trellis}[part.family](part, layout, key)


def _check_lut(part: PartHead, layout: Layout, key: str) -> None:
    _require(1 <= part.bits <= 8, key, f"{part.kind} codes of {part.bits} bits, expected 1 to 8")
    _require(not (part.window or part.vector or part.num_codebooks or part.blocks or part.codebook_size
                  or part.table_id), key, f"a {part.kind} part with fields of another family")
    _require(part.group < 1 << 31, key, f"scale groups of {part.group} weights")
    largest = 1 << (15 if part.kind == "palette" else 8)
    _require(largest * max(1, part.block) <= fmt.EXACT, key, f"{part.kind} with rotation {part.block} is not exact")


def _check_additive(part: PartHead, layout: Layout, key: str) -> None:
    groups = -(-part.channels * layout.taps // part.group) if part.group else 0
    _require(1 <= part.bits <= 16, key, f"{part.kind} codes of {part.bits} bits, expected 1 to 16")
    _require(1 <= part.group <= fmt.MAX_GROUP, key, f"groups of {part.group} weights, expected 1 to {fmt.MAX_GROUP}")
    _require(part.num_codebooks >= 1 and 1 <= part.blocks <= groups, key,
             f"{part.num_codebooks} codebooks in {part.blocks} blocks for {groups} groups")
    # so that no code can point behind its book; a shorter book is padded by its encoder
    _require(part.codebook_size == 1 << part.bits, key,
             f"books of {part.codebook_size} entries with codes of {part.bits} bits, expected {1 << part.bits}")
    _require(not (part.window or part.vector or part.table_id), key, f"a {part.kind} part with trellis fields")


def _check_trellis(part: PartHead, layout: Layout, key: str) -> None:
    _require(1 <= part.window <= 16 and part.vector in (1, 2), key,
             f"trellis window {part.window} with {part.vector} weights a step")
    _require(1 <= part.bits <= min(8, part.window), key,
             f"trellis steps of {part.bits} bits in a window of {part.window}")
    _require(1 <= part.group <= fmt.MAX_CHAIN, key, f"trellis chains of {part.group} columns")
    _require(not (part.num_codebooks or part.blocks or part.codebook_size), key,
             "a trellis part with fields of additive")


def _check_placement(layout: Layout, head: int, key: str) -> None:
    position = align(head)
    for section in sorted(layout.sections, key=lambda s: (s.offset, s.length)):
        _require(section.offset == position, key, f"a section at byte {section.offset} where one at {position} "
                                                  f"was expected (sections follow each other, aligned to {fmt.ALIGN})")
        position = align(section.offset + section.length)
        _require(position <= layout.nbytes, key, f"a section of {section.length} bytes at {section.offset} reaches "
                                                 f"behind the blob's {layout.nbytes}")
    _require(position == layout.nbytes, key, f"sections end at {position}, the blob at {layout.nbytes}")


def _check_sections(layout: Layout, key: str) -> None:
    seen = set()
    for section in layout.sections:
        _require(section.part < len(layout.parts) or section.part == fmt.WHOLE_WEIGHT, key,
                 f"a section of part {section.part}, there are {len(layout.parts)}")
        _require((section.kind, section.part) not in seen, key, f"two sections of kind {section.kind}")
        seen.add((section.kind, section.part))
        whole = section.kind in (Kind.lowrank_down, Kind.lowrank_up)
        known = whole or Kind.codes <= section.kind <= Kind.group_scales
        _require(not known or whole == (section.part == fmt.WHOLE_WEIGHT), key,
                 f"section kind {section.kind} {'of one' if whole else 'without a'} part")
        if section.required and not known:
            name = f" ({Kind(section.kind).name})" if section.kind in list(Kind) else ""
            raise FormatError(f"weight '{key}' needs section kind {section.kind}{name}, which this program does not "
                              f"know: install a newer vqpack")
    for index, part in enumerate(layout.parts):
        _check_part_sections(layout, index, part, key)
    _check_branch(layout, key)


def _check_branch(layout: Layout, key: str) -> None:
    down, up = (layout.section(fmt.WHOLE_WEIGHT, kind) for kind in (Kind.lowrank_down, Kind.lowrank_up))
    _require((down is None) == (up is None), key, "half of a low-rank branch")
    if down is None:
        return
    rank = up.length // (2 * layout.shape[0])
    _require(1 <= rank <= fmt.MAX_RANK, key, f"a low-rank branch of rank {rank}, expected 1 to {fmt.MAX_RANK}")
    for section, shape in zip((down, up), fmt.branch_shapes(layout.shape, rank), strict=True):
        _require(section.dtype == fmt.F16 and section.length == byte_length(fmt.F16, shape), key,
                 f"{Kind(section.kind).name} of {section.length} bytes and dtype {section.dtype}, expected "
                 f"{byte_length(fmt.F16, shape)} and dtype {fmt.F16} for shape {list(shape)}")


def _check_part_sections(layout: Layout, index: int, part: PartHead, key: str) -> None:
    has_cols = layout.section(index, Kind.col_scales) is not None
    expected = section_shapes(part, layout.shape[0], layout.taps, has_cols)
    for kind in list(Kind)[:6]:
        found = layout.section(index, kind)
        _require((found is not None) == (kind in expected), key,
                 f"{'no' if found is None else 'an unexpected'} {kind.name} section in its {part.kind} part")
        if found is not None:
            dtype, shape = expected[kind]
            length = byte_length(dtype, shape)
            _require(found.dtype == dtype and found.length == length, key,
                     f"{kind.name} of {found.length} bytes and dtype {found.dtype}, expected {length} "
                     f"and dtype {dtype} for shape {list(shape)}")
