"""The reference against docs/format.md worked by hand: one weight at a time, in plain Python."""
import pytest
import torch
from vqpack.kernels import packing, reference, rotation


def _scaled(part, integers):
    """float32 products of the format, one weight at a time; integers is a nested list."""
    f32, scales = torch.float32, part.scales
    out = torch.empty(part.out_features, part.channels * part.taps)
    for n in range(part.out_features):
        for col in range(part.channels * part.taps):
            stored = scales.row[n] if scales.row is not None else scales.group[n, col // scales.group_size]
            weight = torch.tensor(float(integers[n][col])) * (stored.to(f32) * torch.tensor(scales.gain))
            if scales.col is not None:
                weight = weight * scales.col[col % part.channels].to(f32)
            out[n, col] = weight
    return out


@pytest.mark.parametrize("uniform,group,col", [(False, 0, False), (False, 5, True), (True, 0, True), (True, 5, False)])
def test_lut(make, uniform, group, col):
    part = make.lut(3, 7, 2, 3, uniform=uniform, group=group, col=col)
    codes = packing.unpack_codes(part.codes, 3, 14).tolist()
    if uniform:
        zeros = part.zero_points.view(3, -1).tolist()
        integers = [[codes[n][c] - zeros[n][c // group if group else 0] for c in range(14)] for n in range(3)]
    else:
        integers = [[int(part.values[code]) for code in row] for row in codes]
    assert torch.equal(reference.decode_part(part), _scaled(part, integers))


@pytest.mark.parametrize("blocks,num_codebooks,group", [(1, 2, 8), (3, 1, 4), (2, 3, 5)])
def test_additive(make, blocks, num_codebooks, group):
    part = make.additive(3, 11, 2, 4, group, num_codebooks, blocks=blocks, col=True)
    groups = -(-22 // group)
    codes = packing.unpack_codes(part.codes, 4, groups * num_codebooks).tolist()
    integers = [[0] * (groups * group) for _ in range(3)]
    for n in range(3):
        for p in range(groups):
            for m in range(num_codebooks):
                entry = part.codebooks[p * blocks // groups, m, codes[n][p * num_codebooks + m]]
                for k in range(group):
                    integers[n][p * group + k] += int(entry[k])
    assert torch.equal(reference.decode_part(part), _scaled(part, integers))


def test_columns_of_order_one_go_channel_by_channel(make):
    """Coded column c * taps + tap is the weight's column tap * channels + c."""
    part = make.additive(3, 11, 6, 4, 5, 2, order=1, col=True)
    coded = reference.decode_integers(type(part)(**{**part.__dict__, "order": 0}))
    integers = [[int(row[col % 11 * 6 + col // 11]) for col in range(66)] for row in coded]
    assert torch.equal(reference.decode_part(part), _scaled(part, integers))


@pytest.mark.parametrize("window,step_bits,vector,chain", [(8, 2, 1, 1), (12, 3, 1, 2), (12, 5, 2, 3), (5, 1, 2, 7)])
def test_trellis(make, window, step_bits, vector, chain):
    part = make.trellis(37, 5, 1, window, step_bits, vector, chain)
    units = part.codes.shape[0]
    integers = [[0] * 5 for _ in range(units * 32 * vector)]
    for first in range(0, 5, chain):
        stream = ""  # the bits of a chain, oldest first
        for col in range(first, min(first + chain, 5)):
            words = part.codes[:, :, col].reshape(-1).tolist()
            bits = "".join(f"{word & 0xFFFFFFFF:032b}" for word in words)
            for t in range(units * 32):
                stream += bits[t * step_bits : (t + 1) * step_bits]
                for k in range(vector):
                    integers[t * vector + k][col] = int(part.table[int(stream[-window:], 2), k])
    assert torch.equal(reference.decode_part(part), _scaled(part, integers))


def test_rotation_comes_before_the_scales(make):
    part = make.lut(3, 16, 2, 3, rotation=8, col=True)
    v = torch.from_numpy(reference.decode_integers(part)).float()
    v = rotation.unrotate(v, 8, rotation.signs(part.rotation_seed, 16), 2)
    assert torch.equal(reference.decode_part(part), _scaled(part, v.tolist()))


def test_zero_codes_before_the_chain(make):
    part = make.trellis(1, 3, 1, 8, 2, 1, 3)
    integers = reference.decode_integers(part)
    assert integers[0, 0] == int(part.table[(int(part.codes[0, 0, 0]) & 0xFFFFFFFF) >> 30, 0])


def test_unknown_part_is_refused():
    with pytest.raises(TypeError, match="got int"):
        reference.decode_integers(3)
