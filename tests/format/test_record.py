"""Blobs: every family at odd shapes, there and back; views, alignment, refusals."""
from __future__ import annotations

import dataclasses

import pytest
import torch
from format_samples import CASES, YOUNGER, parts_of, tables_of
from vqpack.kernels import reference
from vqpack.vq_core.errors import FormatError
from vqpack.vq_core.layout import Kind
from vqpack.vq_core.record import build_blob, check_padding, parse_blob


def expected_weight(shape, parts) -> torch.Tensor:
    """The logical weight from the reference, put together the slow way."""
    out = torch.zeros(shape[0], shape[1], *(shape[2:] or (1, 1)))
    for start, stop, _, part in parts:
        matrix = reference.decode_part(part)
        for tap in range(part.taps):
            y, x = divmod(tap, out.shape[3])
            out[:, start:stop, y, x] = matrix[:, tap * part.channels:(tap + 1) * part.channels]
    return out.view(shape)


@pytest.mark.parametrize("name", [*CASES, *YOUNGER])
def test_round_trip(name):
    shape, parts = parts_of(name)
    blob = build_blob(shape, torch.bfloat16, parts)
    weight = parse_blob(blob, tables_of(parts), name)
    assert weight.shape == shape and weight.source_dtype == torch.bfloat16 and weight.nbytes == blob.numel()
    assert weight.bits == 8 * blob.numel() / weight.numel
    for (start, stop, kind, part), (start2, stop2, kind2, part2) in zip(parts, weight.parts, strict=True):
        assert (start, stop, kind) == (start2, stop2, kind2)
        assert_same_part(part, part2)
    assert torch.equal(weight.decode(), expected_weight(shape, parts))
    check_padding(weight.layout, blob, name)


def assert_same_part(a, b):
    assert type(a) is type(b)
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name == "scales":
            assert_same_part(x, y)
        elif isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype and torch.equal(x, y), field.name
        else:
            assert x == y, field.name


@pytest.mark.parametrize("name", ["palette_groups", "uniform_groups", "trellis_split", "mixed",
                                  "additive_kernel_odd"])
def test_row_ranges_and_memory_formats(name):
    shape, parts = parts_of(name)
    weight = parse_blob(build_blob(shape, torch.float16, parts), tables_of(parts), name)
    whole = weight.decode(torch.float16)
    assert whole.is_contiguous() and whole.dtype == torch.float16
    for start, stop in ((0, 1), (1, shape[0]), (2, 2), (shape[0] - 1, None)):
        assert torch.equal(weight.decode(torch.float16, start, stop), whole[start:stop])
    if len(shape) == 4:
        last = weight.decode(memory_format=torch.channels_last)
        assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, weight.decode())
    with pytest.raises(ValueError, match="rows"):
        weight.decode(start=0, stop=shape[0] + 1)


def test_parts_are_views_and_sections_are_aligned():
    shape, parts = parts_of("trellis_split")
    blob = build_blob(shape, torch.float16, parts)
    weight = parse_blob(blob, tables_of(parts), "w")
    assert blob.numel() % 64 == 0 and all(s.offset % 64 == 0 for s in weight.layout.sections)
    pointers = [p.codes.data_ptr() for *_, p in weight.parts] + [p.scales.row.data_ptr() for *_, p in weight.parts]
    assert all(blob.data_ptr() <= p < blob.data_ptr() + blob.numel() for p in pointers)


def test_same_parts_same_bytes():
    shape, parts = parts_of("mixed")
    assert torch.equal(build_blob(shape, torch.float16, parts), build_blob(shape, torch.float16, parts_of("mixed")[1]))


def test_missing_or_wrong_table_is_refused():
    shape, parts = parts_of("trellis")
    blob = build_blob(shape, torch.float16, parts)
    (identity, table), = tables_of(parts).items()
    with pytest.raises(FormatError, match=f"key.w.*{identity:08x}"):
        parse_blob(blob, {}, "key.w")
    with pytest.raises(FormatError, match="table"):
        parse_blob(blob, {identity: table[:16]}, "key.w")


def edited(blob: torch.Tensor, offset: int, *values: int) -> torch.Tensor:
    out = blob.clone()
    out[offset:offset + len(values)] = torch.tensor(values, dtype=torch.uint8)
    return out


REFUSALS = [
    ("palette", 0, (0,), "VQWEIGHT"), ("palette", 8, (2,), "version 2.*version 1"), ("palette", 10, (0,), "parts"),
    ("palette", 10, (65,), "fit|parts"), ("palette", 12, (255, 255), "fit"), ("palette", 14, (3,), "dimensions"),
    ("palette", 15, (11,), "dtype 11"), ("palette", 16, (0,), "shape"), ("palette", 16, (8,), "codes of"),
    ("palette", 16, (255,) * 4, "codes of"), ("palette", 20, (255,) * 4, "channels"), ("palette", 24, (2,), "shape"),
    ("uniform_groups", 24, (255,) * 8, "codes of"), ("palette", 32, (0,), "length"),
    ("palette", 40, (1,), "reserved"), ("palette", 64, (2,), "family"), ("palette", 65, (9,), "spec 9"),
    ("palette", 66, (1,), "column order 1"), ("additive", 66, (1,), "column order 1"),
    ("trellis_conv", 66, (1,), "column order 1"), ("additive_kernel", 66, (2,), "column order 2"),
    ("palette", 67, (1,), "rotation"), ("palette", 67, (200,), "rotation"),
    ("palette", 76, (0, 0, 128, 127), "gain"), ("palette", 76, (0, 0, 192, 127), "gain"), ("palette", 84, (0,), "bits"),
    ("palette", 84, (9,), "bits"), ("palette", 85, (1,), "fields"), ("palette", 104, (1,), "reserved"),
    ("additive", 88, (0,), "groups of"), ("additive", 88, (255,) * 4, "groups of"), ("additive", 92, (0,), "blocks"),
    ("additive", 92, (255,) * 4, "blocks"), ("additive", 96, (1,), "entries"), ("additive", 84, (7,), "entries"),
    ("additive", 87, (0,), "codebooks"), ("trellis", 85, (17,), "window"), ("trellis", 86, (3,), "weights a step"),
    ("trellis", 84, (9,), "steps of"), ("trellis", 88, (0,), "chains"), ("trellis", 88, (255,) * 4, "chains"),
    ("trellis_split", 68, (1,), "part of channels"), ("trellis_split", 132, (31,), "part of channels"),
]


@pytest.mark.parametrize(("name", "offset", "values", "text"), REFUSALS)
def test_edited_heads_are_refused(name, offset, values, text):
    shape, parts = parts_of(name)
    blob = build_blob(shape, torch.float16, parts)
    with pytest.raises(FormatError, match=text) as caught:
        parse_blob(edited(blob, offset, *values), tables_of(parts), "some.key")
    assert "some.key" in str(caught.value) and "\n" not in str(caught.value)


SECTION = 128       # first section entry of a blob of one part


@pytest.mark.parametrize(("offset", "values", "text"), [
    (0, (1,), "two sections|no row_scales"), (0, (99,), "kind 99"), (0, (7,), r"kind 7 \(table\)"), (2, (1,), "part 1"),
    (2, (255, 255), "without a part"), (4, (0,), "dtype"), (5, (2,), "flags"), (6, (1,), "reserved"),
    (8, (1,), "section at"), (8, (1,), "section at"), (14, (1,), "section at"), (15, (255,), "section at"),
    (16, (1,), "row_scales"), (16, (13,), "row_scales"), (16, (255,), "behind|section at"),
    (23, (255,), "behind|section at"), (24, (1,), "reserved"),
])
def test_edited_sections_are_refused(offset, values, text):
    shape, parts = parts_of("palette")
    blob = build_blob(shape, torch.float16, parts)
    with pytest.raises(FormatError, match=text):
        parse_blob(edited(blob, SECTION + offset, *values), {}, "k")


def test_unknown_optional_section_is_ignored_and_required_refused():
    shape, parts = parts_of("palette")
    blob = build_blob(shape, torch.float16, parts)
    for required in (0, 1):
        extended = with_section(blob, kind=77, required=required, data=b"future")
        if required:
            with pytest.raises(FormatError, match="kind 77"):
                parse_blob(extended, {}, "k")
        else:
            assert torch.equal(parse_blob(extended, {}, "k").decode(), expected_weight(shape, parts))


def with_section(blob: torch.Tensor, kind: int, required: int, data: bytes) -> torch.Tensor:
    """The blob with one more section; the entry table must not grow past its 64-byte padding."""
    import struct

    raw = bytearray(blob.numpy().tobytes())
    count = struct.unpack_from("<H", raw, 12)[0]
    entry = SECTION + 32 * count
    assert entry % 64 == 32, "no room for one more entry"
    struct.pack_into("<HHBBHQQ8s", raw, entry, kind, 0, 0, required, 0, len(raw), len(data), b"")
    raw += data + b"\0" * (-len(data) % 64)
    struct.pack_into("<H", raw, 12, count + 1)
    struct.pack_into("<Q", raw, 32, len(raw))
    return torch.frombuffer(raw, dtype=torch.uint8)


def test_bytes_behind_the_last_section_are_refused():
    shape, parts = parts_of("palette")
    blob = torch.cat([build_blob(shape, torch.float16, parts), torch.zeros(64, dtype=torch.uint8)])
    with pytest.raises(FormatError, match="length"):
        parse_blob(blob, {}, "k")
    blob[32:34] = torch.tensor([blob.numel() % 256, blob.numel() // 256], dtype=torch.uint8)
    with pytest.raises(FormatError, match="sections end"):
        parse_blob(blob, {}, "k")


def test_padding_must_be_zero():
    shape, parts = parts_of("palette")
    blob = build_blob(shape, torch.float16, parts)
    layout = parse_blob(blob, {}, "k").layout
    blob[layout.section(0, Kind.row_scales).offset + 2 * shape[0]] = 1
    with pytest.raises(FormatError, match="padding"):
        check_padding(layout, blob, "k")


@pytest.mark.parametrize("kind", [Kind.row_scales, Kind.col_scales])
def test_non_finite_scales_are_refused(kind):
    shape, parts = parts_of("additive_conv")
    blob = build_blob(shape, torch.float16, parts)
    section = parse_blob(blob, {}, "k").layout.section(0, kind)
    for pattern in ((0, 0x7C), (1, 0x7E), (0, 0xFC)):
        with pytest.raises(FormatError, match=kind.name):
            parse_blob(edited(blob, section.offset + 2, *pattern), {}, "k")


def test_books_that_leave_exact_float32_are_refused():
    shape, ((start, stop, kind, part),) = parts_of("additive")
    books = part.codebooks.repeat(1, 60, 1, 1).clamp(-10, 10)
    part = dataclasses.replace(part, codebooks=books, channels=24, rotation=4,
                               codes=torch.zeros(shape[0], 3 * 180 // 8 + 1, 8, dtype=torch.uint8))
    build_blob((10, 24), torch.float16, [(start, 24, kind, part)])
    part.codebooks[0, 0, 0, 0] = 32767
    with pytest.raises(FormatError, match="exact"):
        build_blob((10, 24), torch.float16, [(start, 24, kind, part)])


@pytest.mark.parametrize(("change", "text"), [
    ({"codes": torch.zeros(7, 2, 2, dtype=torch.uint8)}, "codes"), ({"values": None}, "codebooks"),
    ({"zero_points": torch.zeros(7, dtype=torch.uint8)}, "zero_points"), ({"rotation": 12}, "rotation"),
    ({"channels": 12}, "channels"),
])
def test_build_refuses_parts_that_do_not_fit(change, text):
    shape, ((start, stop, kind, part),) = parts_of("palette")
    with pytest.raises(FormatError, match=text):
        build_blob(shape, torch.float16, [(start, stop, kind, dataclasses.replace(part, **change))])
