"""palette and uniform: ceilings on a Gaussian, exactness on what they can represent, nearest codes."""
import pytest
import torch
from vqpack.kernels.packing import unpack_codes
from vqpack.kernels.reference import decode_part
from vqpack.vq_core.encode.palette import encode_palette
from vqpack.vq_core.encode.uniform import encode_uniform
from vqpack.vq_core.spec import PaletteSpec, UniformSpec

# Error times 4^bits on a seeded Gaussian 512 x 1280: the converged Lloyd-Max quantizer plus 1 %; uniform as measured.
PALETTE_CEILING = {1: 1.469, 2: 1.90, 3: 2.245, 4: 2.455, 5: 2.58, 6: 2.70, 7: 2.78, 8: 2.82}
UNIFORM_CEILING = {1: 2.40, 2: 2.40, 3: 2.58, 4: 3.00, 6: 3.65, 8: 3.75}


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(part, matrix):
    return float((decode_part(part) - matrix).square().sum() / matrix.square().sum())


def stored_bits(part):
    numbers = [part.codes, part.scales.row, part.scales.group, part.values, part.zero_points]
    return sum(t.numel() * t.element_size() * 8 for t in numbers if t is not None)


@pytest.mark.parametrize("bits", PALETTE_CEILING)
def test_palette_reaches_the_scalar_limit(bits):
    matrix = gaussian(512, 1280)
    part = encode_palette(matrix, PaletteSpec(bits), channels=1280, taps=1)
    assert error(part, matrix) * 4**bits < PALETTE_CEILING[bits]
    assert stored_bits(part) == 512 * 1280 * bits + 512 * 16 + 2**bits * 16


@pytest.mark.parametrize("bits", UNIFORM_CEILING)
def test_uniform_ceiling(bits):
    matrix = gaussian(512, 1280)
    part = encode_uniform(matrix, UniformSpec(bits), channels=1280, taps=1)
    assert error(part, matrix) * 4**bits < UNIFORM_CEILING[bits]
    assert stored_bits(part) == 512 * 1280 * bits + 512 * (16 + 8)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_is_exact_where_the_codebook_fits(bits):
    levels = gaussian(2**bits, seed=1).sort().values
    row = levels.repeat(5)
    matrix = torch.stack([row[torch.randperm(len(row), generator=torch.Generator().manual_seed(i))] for i in range(7)])
    matrix = matrix * torch.linspace(0.1, 3, 7)[:, None]
    assert error(encode_palette(matrix, PaletteSpec(bits), channels=len(row), taps=1), matrix) < 1e-6


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_uniform_is_exact_on_its_own_grid(bits):
    codes = torch.arange(2**bits).repeat(3).float()
    matrix = torch.stack([codes * 0.25, (codes - 2) * 0.5, -codes, codes * 2**-9])
    assert error(encode_uniform(matrix, UniformSpec(bits), channels=len(codes), taps=1), matrix) < 1e-6


def test_every_palette_code_is_the_nearest():
    matrix = gaussian(6, 200)
    part = encode_palette(matrix, PaletteSpec(3), channels=200, taps=1, rounds=1)
    codes = unpack_codes(part.codes, 3, 200).long()
    decoded = decode_part(part)
    used = torch.stack([part.values.float() * s for s in part.scales.row.float() * part.scales.gain])  # [6, 8]
    distance = (matrix[:, :, None] - used[:, None]).abs()
    regret = (matrix - decoded).abs() - distance.min(-1).values
    # codes were chosen before the scale's refit, which moves boundaries by about a percent of a cell
    assert float(regret.max()) < 0.15 and float((distance.argmin(-1) == codes).float().mean()) > 0.95


def test_zeros_of_pruned_weights_stay_exact():
    matrix = gaussian(64, 256)
    matrix[torch.rand(64, 256, generator=torch.Generator().manual_seed(1)) < 0.4] = 0
    for part in (encode_palette(matrix, PaletteSpec(3), channels=256, taps=1),
                 encode_uniform(matrix, UniformSpec(4), channels=256, taps=1)):
        assert not decode_part(part)[matrix == 0].any()


def test_group_scales_follow_local_size():
    matrix = gaussian(32, 256) * torch.logspace(-2, 2, 16).repeat_interleave(16)
    for encoder, spec in ((encode_palette, PaletteSpec), (encode_uniform, UniformSpec)):
        rows = encoder(matrix, spec(4), channels=256, taps=1)
        groups = encoder(matrix, spec(4, 16), channels=256, taps=1)
        size = torch.logspace(-2, 2, 16).repeat_interleave(16)
        local = [((decode_part(p) - matrix) / size).square().mean() for p in (rows, groups)]
        assert local[1] < 0.05 * local[0]


def test_second_round_never_loses():
    matrix = gaussian(64, 48)
    once, twice = (error(encode_palette(matrix, PaletteSpec(4), channels=48, taps=1, rounds=r), matrix) for r in (1, 3))
    assert twice < once


def test_rows_above_or_below_zero_use_the_whole_grid():
    matrix = 10 + gaussian(2, 300)
    matrix[1] *= -1
    assert error(encode_uniform(matrix, UniformSpec(8), channels=300, taps=1), matrix) < 2e-5


def test_power_weighs_large_errors_more():
    matrix = gaussian(16, 512)
    two, six = (decode_part(encode_uniform(matrix, UniformSpec(3), channels=512, taps=1, power=p)) for p in (2.0, 6.0))
    assert float((two - matrix).square().sum()) < float((six - matrix).square().sum())
    assert float((six - matrix).abs().pow(6).sum()) < float((two - matrix).abs().pow(6).sum())
