"""The low-rank branch of a weight: stored, counted, added by decoding, refused where it is damaged."""
from __future__ import annotations

import struct

import pytest
import torch
from format_samples import parts_of, tables_of
from vqpack.vq_core.errors import FormatError
from vqpack.vq_core.inspection import spec_of
from vqpack.vq_core.layout import SECTION_BYTES, WHOLE_WEIGHT, Kind
from vqpack.vq_core.record import build_blob, check_padding, parse_blob

CASES = ("trellis_conv", "trellis_split", "mixed", "one", "additive_kernel")


def with_branch(name: str, rank: int = 3):
    """-> (blob, parts, down, up)"""
    shape, parts = parts_of(name)
    g = torch.Generator().manual_seed(1)
    cols = torch.Size(shape[1:]).numel()
    down, up = torch.randn(rank, cols, generator=g).half(), torch.randn(shape[0], rank, generator=g).half()
    return build_blob(shape, torch.float16, parts, (down, up)), parts, down, up


@pytest.mark.parametrize("name", CASES)
def test_decoding_adds_the_product(name):
    blob, parts, down, up = with_branch(name)
    shape = parts_of(name)[0]
    weight = parse_blob(blob, tables_of(parts), name)
    plain = parse_blob(build_blob(shape, torch.float16, parts), tables_of(parts), name)
    product = up.double() @ down.double()                                          # columns (tap, channel)
    if len(shape) == 4:
        product = product.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
    torch.testing.assert_close(weight.decode().double(), plain.decode().double() + product, rtol=1e-5, atol=1e-5)
    assert weight.layout.rank == 3 == spec_of(weight)["rank"] and plain.layout.rank == 0
    assert torch.equal(weight.branch[0], down) and torch.equal(weight.branch[1], up)
    stored = 2 * (down.numel() + up.numel())
    assert stored <= weight.nbytes - plain.nbytes <= stored + 128 + 2 * SECTION_BYTES
    check_padding(weight.layout, blob, name)
    assert weight.decode(torch.float16).dtype == torch.float16 and weight.decode(start=1, stop=1).shape[0] == 0


def test_any_rows_are_the_rows_of_the_whole():
    from format_samples import generator, trellis

    g = generator(2)
    part = trellis(1100, 8, 1, g)
    branch = torch.randn(2, 8, generator=g).half(), torch.randn(1100, 2, generator=g).half()
    weight = parse_blob(build_blob((1100, 8), torch.float16, [(0, 8, "trellis", part)], branch),
                        tables_of([(0, 8, "trellis", part)]), "w")
    whole = weight.decode()
    for start, stop in ((0, 7), (500, 520), (511, 513), (3, 1100)):
        assert torch.equal(weight.decode(start=start, stop=stop), whole[start:stop])


def section_at(blob: torch.Tensor, kind: Kind) -> int:
    """Where the entry of a section of the whole weight stands."""
    parts, sections = struct.unpack_from("<HH", bytes(blob[10:14].numpy()))
    first = 64 + 64 * parts
    for i in range(sections):
        found, part = struct.unpack_from("<HH", bytes(blob[first + 32 * i:first + 32 * i + 4].numpy()))
        if (found, part) == (kind, WHOLE_WEIGHT):
            return first + 32 * i
    raise AssertionError(kind)


@pytest.mark.parametrize(("offset", "value", "said"), [
    (0, Kind.activation_ranges, "needs section kind 10"), (2, 0, "of one part"), (4, 7, "dtype")])
def test_damaged_entries_are_refused(offset, value, said):
    blob, parts, *_ = with_branch("trellis_conv")
    at = section_at(blob, Kind.lowrank_down) + offset
    blob[at:at + 2] = torch.tensor(list(struct.pack("<H", value)), dtype=torch.uint8) if offset < 4 else torch.tensor(
        [value, 1], dtype=torch.uint8)
    with pytest.raises(FormatError, match=said):
        parse_blob(blob, tables_of(parts), "w")


def test_halves_infinities_and_wrong_ranks_are_refused():
    blob, parts, down, up = with_branch("trellis_conv")
    at = section_at(blob, Kind.lowrank_up)
    half = blob.clone()
    half[at], half[at + 5] = 99, 0                                     # an optional section nobody knows
    with pytest.raises(FormatError, match="half of a low-rank branch"):
        parse_blob(half, tables_of(parts), "w")
    shape = parts_of("trellis_conv")[0]
    for bad in ((down, up[:, :2].contiguous()), (down[:, 1:].contiguous(), up), (down.float(), up)):
        with pytest.raises(FormatError, match="low-rank|lowrank"):
            build_blob(shape, torch.float16, parts, bad)
    with pytest.raises(FormatError, match="NaN or Inf"):
        build_blob(shape, torch.float16, parts, (down * float("inf"), up))
    with pytest.raises(FormatError, match="rank 0"):
        build_blob(shape, torch.float16, parts, (down[:0], up[:, :0]))
