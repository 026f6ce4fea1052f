"""What holds for every data-free codebook encoder: zeros, odd sizes, extremes, determinism, least-squares scales."""
import pytest
import torch
from vqpack.kernels.reference import decode_part
from vqpack.vq_core.encode import palette, uniform
from vqpack.vq_core.encode.additive import Effort, encode_additive
from vqpack.vq_core.encode.palette import encode_palette
from vqpack.vq_core.encode.product import encode_product
from vqpack.vq_core.encode.uniform import encode_uniform
from vqpack.vq_core.spec import AdditiveSpec, PaletteSpec, ProductSpec, UniformSpec

CASES = {
    "palette1": (encode_palette, PaletteSpec(1)), "palette3": (encode_palette, PaletteSpec(3)),
    "palette8": (encode_palette, PaletteSpec(8)), "palette3-groups": (encode_palette, PaletteSpec(3, 16)),
    "uniform1": (encode_uniform, UniformSpec(1)), "uniform4": (encode_uniform, UniformSpec(4)),
    "uniform8": (encode_uniform, UniformSpec(8)), "uniform4-groups": (encode_uniform, UniformSpec(4, 16)),
    "additive1": (encode_additive, AdditiveSpec(1)), "additive2": (encode_additive, AdditiveSpec(2)),
    "product1": (encode_product, ProductSpec(1)), "product2": (encode_product, ProductSpec(2)),
    "product4": (encode_product, ProductSpec(4)),
}
QUICK = Effort(sample=2**11, iterations=2, rounds=1, beam=2)


def encode(case, matrix, taps=1, **options):
    encoder, spec = CASES[case]
    if spec.kind == "additive":
        options["effort"] = QUICK
    return encoder(matrix, spec, channels=matrix.shape[1] // taps, taps=taps, **options)


def relative_error(part, matrix):
    return float((decode_part(part) - matrix).square().sum() / matrix.square().sum())


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape, taps", [((37, 63), 9), ((1, 40), 1), ((5, 1), 1), ((3, 7), 1), ((1, 1), 1)])
def test_odd_sizes_decode_to_their_shape(case, shape, taps):
    matrix = gaussian(*shape)
    decoded = decode_part(encode(case, matrix, taps))
    assert decoded.shape == shape and bool(decoded.isfinite().all())
    assert float((decoded - matrix).square().sum()) < float(matrix.square().sum())


@pytest.mark.parametrize("case", CASES)
def test_zero_rows_decode_to_exact_zeros(case):
    matrix = gaussian(9, 33)
    matrix[[0, 4, 8]] = 0
    decoded = decode_part(encode(case, matrix))
    assert not decoded[[0, 4, 8]].any() and decoded[[1, 2, 3, 5, 6, 7]].any(1).all()
    assert not decode_part(encode(case, torch.zeros(3, 33))).any()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("factor", [1e-7, 1e-25, 1e4, 1e25])
def test_magnitude_changes_nothing_but_the_gain(case, factor):
    matrix = gaussian(24, 64, seed=1)
    ordinary = relative_error(encode(case, matrix), matrix)
    scaled = decode_part(encode(case, matrix * factor)).double() / factor
    assert bool(scaled.isfinite().all())
    error = float((scaled - matrix).square().sum() / matrix.square().sum())
    assert error == pytest.approx(ordinary, rel=0.02, abs=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_rows_of_very_different_size_keep_their_own_precision(case):
    matrix = gaussian(64, 64, seed=2)
    factors = torch.logspace(-3, 3, 64)[:, None]
    decoded = decode_part(encode(case, matrix * factors)) / factors
    error = (decoded - matrix).square().sum(1) / matrix.square().sum(1)
    assert float(error.max()) < 1.0


@pytest.mark.parametrize("case", CASES)
def test_outliers_stay_finite_and_are_not_ignored(case):
    matrix = gaussian(64, 128, seed=3)
    hit = torch.rand(64, 128, generator=torch.Generator().manual_seed(4)) < 1e-3
    matrix[hit] *= 6
    part = encode(case, matrix)
    assert relative_error(part, matrix) < 0.75


@pytest.mark.parametrize("case", [c for c in CASES if c != "uniform1"])
def test_constant_rows_are_nearly_exact(case):
    matrix = torch.linspace(0.5, 2, 12)[:, None].repeat(1, 48)
    assert relative_error(encode(case, matrix), matrix) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_same_input_gives_same_bytes(case):
    matrix = gaussian(40, 72, seed=5)
    first, second = encode(case, matrix.clone(), seed=3), encode(case, matrix.clone(), seed=3)
    assert torch.equal(first.codes, second.codes) and first.scales.gain == second.scales.gain
    for name in ("values", "zero_points", "codebooks"):
        a, b = getattr(first, name, None), getattr(second, name, None)
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("case", CASES)
def test_input_is_left_alone_and_records_match_the_format(case):
    matrix = gaussian(10, 36, seed=6)
    before = matrix.clone()
    part = encode(case, matrix)
    assert torch.equal(matrix, before)
    assert part.codes.dtype == torch.uint8 and part.codes.is_contiguous() and part.codes.shape[2] == part.bits
    stored = part.scales.row if part.scales.row is not None else part.scales.group
    assert stored.dtype == torch.float16 and stored.is_contiguous() and stored.shape[0] == 10
    if part.scales.group is not None:
        assert stored.shape == (10, 3) and part.scales.group_size == 16


@pytest.mark.parametrize("case", [c for c in CASES if "groups" not in c])
def test_row_scales_are_the_least_squares_ones(case):
    matrix = gaussian(20, 80, seed=7)
    decoded = decode_part(encode(case, matrix))
    factor = (matrix * decoded).sum(1) / decoded.square().sum(1)
    assert float((factor - 1).abs().max()) < 1e-3          # float16 rounds to 2^-11


@pytest.mark.parametrize("case", ["palette3-groups", "uniform4-groups"])
def test_group_scales_are_the_least_squares_ones_also_in_the_short_last_group(case):
    matrix = gaussian(20, 37, seed=9)
    decoded = decode_part(encode(case, matrix))
    for group in (slice(0, 16), slice(16, 32), slice(32, 37)):
        d, t = decoded[:, group], matrix[:, group]
        assert float(((t * d).sum(1) / d.square().sum(1) - 1).abs().max()) < 1e-3


@pytest.mark.parametrize("case", ["palette3", "additive1", "product2"])
def test_books_serve_the_rows_that_weigh_most(case):
    """Strong rows are nearly two-valued; their share of the error, not their number, must shape the books."""
    strong = gaussian(16, 256, seed=10).sign() * (1 + 0.02 * gaussian(16, 256, seed=11))
    weak = gaussian(240, 256, seed=12).exp()
    mixed = torch.cat([30 * strong, weak])
    lost = (decode_part(encode(case, mixed)) - mixed).square()
    other = (decode_part(encode(case, torch.cat([strong, weak]))) - torch.cat([strong, weak])).square()
    assert float(lost[:16].mean()) / 900 < 0.9 * float(other[:16].mean())


def test_chunks_do_not_change_the_codes(monkeypatch):
    matrix = gaussian(50, 96, seed=8)
    for case, module in (("palette3", palette), ("uniform4", uniform), ("palette3-groups", palette)):
        whole = encode(case, matrix)
        monkeypatch.setattr(module, "CHUNK", 70)
        assert torch.equal(encode(case, matrix).codes, whole.codes)
        monkeypatch.undo()
