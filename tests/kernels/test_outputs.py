"""What decode_part may write to and in which dtype: ranges of columns, int8 integers, and what it refuses."""
import dataclasses

import pytest
import torch
from vqpack.kernels import decode_torch, dispatch, integers, reference
from vqpack.kernels.dispatch import decode_group, decode_part

FAMILIES = {
    "trellis": lambda make: make.trellis(70, 32, 3, rotation=16, col=True),
    "uniform": lambda make: make.lut(70, 32, 3, 4, uniform=True, group=8),
    "palette": lambda make: small(make.lut(70, 32, 3, 4, rotation=8), "values"),
    "additive": lambda make: small(make.additive(70, 32, 3, 8, 8, 2, rotation=32), "codebooks"),
}


def small(part, name):
    """The part with a table of small integers."""
    return dataclasses.replace(part, **{name: (getattr(part, name) % 31).to(torch.int16)})


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch, poisoned_empty):
    monkeypatch.setattr(decode_torch, "CPU_CHUNK", 400)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", dispatch.DTYPES)
def test_a_range_of_columns_is_written_and_nothing_beside_it(make, family, dtype):
    part = FAMILIES[family](make)
    expected = decode_part(part, 5, 50, dtype)                              # [45, 96]
    wide = torch.full((45, 3, 40), 77, dtype=dtype)
    there = decode_part(part, 5, 50, dtype, out=wide[:, :, 3:35])
    assert torch.equal(wide[:, :, 3:35].flatten(1), expected) and torch.equal(there.flatten(1), expected)
    assert (wide[:, :, :3] == 77).all() and (wide[:, :, 35:] == 77).all()
    rows = torch.full((45, 100), 77, dtype=dtype)                           # rows apart, taps together
    decode_part(part, 5, 50, dtype, out=rows[:, 2:98])
    assert torch.equal(rows[:, 2:98], expected) and (rows[:, :2] == 77).all() and (rows[:, 98:] == 77).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_is_the_integers_before_scales_and_rotation(make, family):
    part = FAMILIES[family](make)
    whole = torch.from_numpy(reference.decode_integers(part))
    assert torch.equal(decode_part(part, dtype=torch.int8), whole.to(torch.int8))
    assert torch.equal(decode_part(part, 7, 41, torch.int8, backend="reference"), whole[7:41].to(torch.int8))


@pytest.mark.parametrize("part,low,high", [
    (lambda make: dataclasses.replace(make.lut(bits=1), values=torch.tensor([-128, 127]).short()), -128, 127),
    (lambda make: dataclasses.replace(make.lut(bits=1), values=torch.tensor([-129, 5]).short()), -129, 5),
    (lambda make: dataclasses.replace(make.lut(bits=8, uniform=True), zero_points=torch.full((13,), 128).byte()),
     -128, 127),
    (lambda make: dataclasses.replace(make.lut(bits=8, uniform=True), zero_points=torch.full((13,), 127).byte()),
     -127, 128),
])
def test_int8_is_refused_where_a_table_allows_more(make, part, low, high):
    part = part(make)
    assert integers.integer_range(part) == (low, high)
    if -128 <= low and high <= 127:
        assert decode_part(part, dtype=torch.int8).dtype == torch.int8
        return
    with pytest.raises(ValueError, match=f"from {low} to {high}, int8 holds -128 to 127"):
        decode_part(part, dtype=torch.int8)


def test_sums_of_books_are_bounded_by_block_and_lane(make):
    part = make.additive(7, 16, 1, 4, 4, 2, blocks=2)
    books = torch.zeros(2, 2, 16, 4, dtype=torch.int16)
    books[0, 0, 3, 1], books[0, 1, 9, 1] = 100, 27       # one lane of one block: 127
    books[0, 0, 3, 2], books[1, 1, 0, 2] = 50, 120       # two blocks: never added
    books[1, 0, 5, 0], books[1, 1, 6, 0] = -100, -28
    part = dataclasses.replace(part, codebooks=books)
    assert integers.integer_range(part) == (-128, 127)
    books = books.clone()
    books[0, 1, 9, 1] = 28
    assert integers.int8_refusal(dataclasses.replace(part, codebooks=books)) is not None


def test_a_code_beyond_a_short_book_counts_as_zero(make):
    part = make.additive(5, 16, 1, 4, 4, 1, codebook_size=16)
    assert integers.integer_range(dataclasses.replace(part, codebooks=torch.full((1, 1, 16, 4), 9).short())) == (9, 9)
    assert integers.integer_range(dataclasses.replace(part, codebooks=torch.full((1, 1, 11, 4), 9).short())) == (0, 9)


@pytest.mark.parametrize("out", [
    lambda: torch.empty(70, 3, 32, dtype=torch.float64), lambda: torch.empty(70, 97), lambda: torch.empty(69, 96),
    lambda: torch.empty(70, 32, 3), lambda: torch.empty(96, 70).t(), lambda: torch.empty(70, 3, 32, 1),
    lambda: torch.empty(70, 3, 64)[:, :, ::2], lambda: torch.empty(1, 3, 32).expand(70, 3, 32),
    lambda: torch.empty(70, 1, 32).expand(70, 3, 32), lambda: torch.empty(9999).as_strided((70, 3, 32), (64, 32, 1)),
    lambda: torch.empty(70, 96, device="meta"),
])
def test_outputs_that_do_not_fit_are_refused(make, out):
    with pytest.raises(ValueError, match="out must be torch.float32"):
        decode_part(FAMILIES["trellis"](make), out=out())


def test_parts_of_a_group_are_written_each_to_its_place(make):
    parts = [make.trellis(70, 32), make.lut(70, 32, 1), make.trellis(33, 32, step_bits=3)]
    outs = [torch.empty(part.out_features, 32, dtype=torch.float16) for part in parts]
    decode_group(parts, outs)
    for part, out in zip(parts, outs, strict=True):
        assert torch.equal(out, decode_part(part, dtype=torch.float16))
    with pytest.raises(ValueError):
        decode_group(parts, outs[:2])
    with pytest.raises(TypeError, match="got dict"):
        decode_group([{}], outs[:1])
    decode_group([], [])


def test_a_backend_that_takes_groups_gets_one(make, monkeypatch):
    class Module:
        @staticmethod
        def decode_group(parts, maps):
            for here in maps:
                here.fill_(len(parts))

    monkeypatch.setattr(dispatch, "_module", lambda name: Module)
    outs = [torch.empty(70, 32) for _ in range(3)]
    decode_group([make.trellis(70, 32) for _ in outs], outs)
    assert all((out == 3).all() for out in outs)


def test_out_of_memory_says_what_was_wanted(make, monkeypatch):
    class Module:
        @staticmethod
        def decode(part, start, stop, out):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(dispatch, "_module", lambda name: Module)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"70 rows of 96 weights to torch.float32 \(0.0 MB\)"):
        decode_part(FAMILIES["trellis"](make))
