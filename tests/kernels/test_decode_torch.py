"""decode_torch and the dispatcher's contract: bit-equal to the reference, whatever rows are asked for."""
import pytest
import torch
from vqpack.kernels import decode_torch, lookup, reference, rotation
from vqpack.kernels.dispatch import decode_part

DTYPES = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def same(part):
    """Every dtype, whole and from the middle, bit for bit (so -0 and +0 differ)."""
    truth = reference.decode_part(part)
    middle = slice(part.out_features // 3, part.out_features - 1)
    for dtype, bits in DTYPES.items():
        expected = truth.to(dtype).view(bits)
        assert torch.equal(decode_part(part, dtype=dtype, backend="torch").view(bits), expected)
        rows = decode_part(part, middle.start, middle.stop, dtype, backend="torch")
        assert torch.equal(rows.view(bits), expected[middle])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch, poisoned_empty):
    """Several chunks per decode, in memory that is NaN before it is written."""
    monkeypatch.setattr(decode_torch, "CPU_CHUNK", 400)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("channels,taps,group,rotation,col", [(31, 1, 0, 0, False), (31, 3, 20, 0, True),
                                                              (32, 3, 0, 16, True), (64, 1, 10, 64, False)])
def test_lut(make, bits, uniform, channels, taps, group, rotation, col):
    same(make.lut(13, channels, taps, bits, uniform=uniform, group=group, rotation=rotation, col=col))


@pytest.mark.parametrize("bits", [3, 6, 8, 11, 16])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("num_codebooks,blocks", [(1, 1), (1, 5), (2, 3), (4, 1)])
def test_additive(make, bits, group, num_codebooks, blocks):
    same(make.additive(7, 31, 3, bits, group, num_codebooks, codebook_size=min(2**bits, 500), blocks=blocks))


@pytest.mark.parametrize("channels, taps, group", [(31, 9, 9), (5, 6, 4), (1, 9, 9), (7, 1, 3)])
def test_additive_channel_by_channel(make, channels, taps, group):
    same(make.additive(13, channels, taps, 8, group, 2, order=1, col=True))
    same(make.additive(13, 4 * channels, taps, 5, group, 1, blocks=2, order=1, rotation=4, scale_group=11))


@pytest.mark.parametrize("rotation", [0, 8, 128])
def test_additive_rotated(make, rotation):
    same(make.additive(7, 128, 2, 8, 8, 2, rotation=rotation, col=True, scale_group=33))


def test_codes_beyond_a_short_book_decode_to_zero(make):
    part = make.additive(5, 16, 1, 4, 4, 2, codebook_size=16)
    cut = type(part)(**{**part.__dict__, "codebooks": part.codebooks[:, :, :11].contiguous()})
    zeroed = part.codebooks.clone()
    zeroed[:, :, 11:] = 0
    expected = reference.decode_part(type(part)(**{**part.__dict__, "codebooks": zeroed}))
    assert torch.equal(decode_part(cut, backend="torch"), expected)
    assert torch.equal(reference.decode_part(cut), expected)


@pytest.mark.parametrize("window", [1, 5, 8, 12, 16])
@pytest.mark.parametrize("step_bits", range(1, 9))
@pytest.mark.parametrize("vector", [1, 2])
def test_trellis(make, window, step_bits, vector):
    rotation, group = (0, 8, 32)[step_bits % 3], 24 if step_bits % 4 == 3 else 0
    same(make.trellis(67 * vector + 1, 32, 2, window, step_bits, vector, chain=3, rotation=rotation, group=group,
                      col=step_bits % 2 == 0))


@pytest.mark.parametrize("out_features", [1, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("chain", [1, 2, 5, 100])
def test_trellis_ends_and_chains(make, out_features, chain):
    same(make.trellis(out_features, 7, 1, 12, 3, 1, chain))
    same(make.trellis(out_features, 1, 1, 12, 7, 2, chain))


@pytest.mark.parametrize("block", [16, 64, 128])
def test_trellis_rotated_by_every_spec_block(make, block):
    same(make.trellis(70, 128, 3, 12, 2, 1, 1, rotation=block, col=True))


@pytest.mark.parametrize("family", ["lut", "additive", "trellis"])
def test_any_rows_are_the_rows_of_the_whole(make, family):
    part = getattr(make, family)(70, 16, 1, rotation=8)
    whole = decode_part(part)
    for start in range(0, 71, 7):
        for stop in range(start, 71, 5):
            assert torch.equal(decode_part(part, start, stop), whole[start:stop])


def test_no_result_depends_on_the_chunk_size(make, monkeypatch):
    parts = [make.lut(50, 40, 1), make.additive(50, 40, 1), make.trellis(150, 40, 1, rotation=8)]
    whole = [decode_part(part) for part in parts]
    for chunk in (1, 999, 10**6):
        monkeypatch.setattr(decode_torch, "CPU_CHUNK", chunk)
        for part, expected in zip(parts, whole, strict=True):
            assert torch.equal(decode_part(part), expected)


def test_negative_scales_and_zeros_keep_their_signs(make):
    part = make.trellis(64, 32, 1, 8, 2, 1, rotation=16)
    part.table.zero_()
    same(part)


def test_largest_integers_of_the_matrix_path_are_exact():
    v = torch.randint(-128, 128, (64, 256)).float()
    turn = rotation.Unrotation(128, 3, 256, 1, v.device, small=True)
    expected = rotation.unrotate(v, 128, rotation.signs(3, 256))
    assert torch.equal(turn(v.clone()), expected)
    extreme = torch.full((1, 256), -128.0)
    assert turn(extreme)[0, 0].abs() == 128 * 128


def test_offset_storage_is_read_where_it_is(make):
    part = make.additive(7, 16, 1, 4, 4, 1)
    padded = torch.cat([torch.zeros(1, dtype=torch.int16), part.codebooks.reshape(-1)])
    shifted = padded[1:].view(part.codebooks.shape)  # not a multiple of the item's width
    assert torch.equal(decode_part(type(part)(**{**part.__dict__, "codebooks": shifted})), decode_part(part))


def test_lookups_are_kept_and_bounded(make):
    lookup._kept.clear()
    table = make.integers(-9, 9, 256, 1).to(torch.int8)
    first = lookup.trellis_lookup(table, 8, 2)
    assert lookup.trellis_lookup(table, 8, 2) is first
    assert lookup.trellis_lookup(table.clone(), 8, 2) is first, "equal contents"
    assert lookup.trellis_lookup(table, 8, 3) is not first
    for _ in range(2 * lookup.KEEP):
        lookup.trellis_lookup(make.integers(-9, 9, 256, 1).to(torch.int8), 8, 2)
    assert len(lookup._kept) == lookup.KEEP


def test_memory_of_a_decode_is_a_few_chunks(make, monkeypatch):
    taken = []
    monkeypatch.setattr(decode_torch, "CPU_CHUNK", 2**14)
    original = lookup.Scratch.take

    def counted(self, name, dtype, *shape):
        tensor = original(self, name, dtype, *shape)
        taken.append((name, tensor.numel() * tensor.element_size()))
        return tensor

    monkeypatch.setattr(lookup.Scratch, "take", counted)
    for part in (make.lut(700, 128, 1, 7), make.additive(700, 128, 1, 8, 8, 4), make.trellis(700, 128, 1, 12, 7, 2)):
        taken.clear()
        decode_part(part)
        largest = {}
        for name, size in taken:
            largest[name] = max(size, largest.get(name, 0))
        assert sum(largest.values()) <= 6 * 4 * 2**14, (type(part).__name__, largest)
