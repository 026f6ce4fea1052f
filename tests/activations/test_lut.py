"""T15: products from look-up tables equal decode-then-multiply; operations are those of the formula, over real SDXL."""
from __future__ import annotations

import gzip
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F
from vqpack.kernels.parts import Scales
from vqpack.vq_core.activations.thesis import thesis_plan
from vqpack.vq_core.encode import encode_weight
from vqpack.vq_core.errors import UnsupportedError
from vqpack.vq_core.layers import VQConv2d, VQLinear
from vqpack.vq_core.lut_matmul import lut_layer
from vqpack.vq_core.operations import dense_operations, input_vectors, table_operations, unet_operations
from vqpack.vq_core.record import build_blob, parse_blob
from vqpack.vq_core.spec import make_spec

LIMITS = {torch.float32: 1e-5, torch.float16: 1e-3}


def coded(shape, kind="additive", bits=2, splits=(), **options):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.1
    return encode_weight(weight, make_spec(kind, bits, **options), splits=splits).weight


def with_parts(weight, change, branch=None):
    """The same codes with other scales or rotation."""
    parts = [(start, stop, kind, change(part)) for start, stop, kind, part in weight.parts]
    return parse_blob(build_blob(weight.shape, weight.source_dtype, parts, branch), {}, "x")


def check(layer, x):
    wanted = layer(x).float()
    got = lut_layer(layer, x)
    assert got.dtype == x.dtype and got.shape == wanted.shape
    assert float((got.float() - wanted).norm() / wanted.norm()) < LIMITS[x.dtype]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("kind", "bits", "shape", "splits"), [
    ("additive", 2, (40, 64), ()), ("additive", 1, (33, 37), ()), ("additive", 3, (5, 24), (16, 8)),
    ("product", 2, (64, 48), ()), ("additive", 4, (1, 8), ())])
def test_linear_layers(kind, bits, shape, splits, dtype):
    g = torch.Generator().manual_seed(1)
    layer = VQLinear(coded(shape, kind, bits, splits), torch.randn(shape[0], generator=g))
    for lead in ((7,), (2, 3), (1,)):
        check(layer, torch.randn(*lead, shape[1], generator=g).to(dtype))


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("shape", "options", "geometry", "splits"), [
    ((6, 16, 3, 3), {}, {"padding": 1}, ()), ((6, 5, 3, 3), {"conv_group": "kernel"}, {"padding": 1, "stride": 2}, ()),
    ((9, 11, 1, 1), {}, {}, (8, 3)), ((4, 8, 1, 3), {}, {"padding": (0, 1)}, ()),
    ((4, 6, 3, 3), {"conv_group": "kernel"}, {"dilation": 2}, (4, 2))])
def test_convolutions(shape, options, geometry, splits, dtype):
    g = torch.Generator().manual_seed(1)
    layer = VQConv2d(coded(shape, splits=splits, **options), torch.randn(shape[0], generator=g), **geometry)
    check(layer, torch.randn(2, shape[1], 9, 7, generator=g).to(dtype))


def test_rotation_column_scales_and_branch():
    g = torch.Generator().manual_seed(1)
    col = (torch.rand(32, generator=g) + 0.5).half()

    def turned(part):
        scales = Scales(part.scales.gain / 4, part.scales.row, col=col)
        return replace(part, rotation=16, rotation_seed=5, scales=scales)

    branch = torch.randn(2, 32, generator=g).half(), torch.randn(24, 2, generator=g).half()
    check(VQLinear(with_parts(coded((24, 32)), turned, branch)), torch.randn(11, 32, generator=g))


def test_chunks_do_not_matter(monkeypatch):
    layer, x = VQLinear(coded((40, 64))), torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    whole = lut_layer(layer, x)
    monkeypatch.setattr("vqpack.vq_core.lut_matmul.TABLE_BYTES", 4 * 8 * 2 * 256 * 7)
    assert torch.allclose(lut_layer(layer, x), whole, atol=1e-6)


def test_other_codes_are_refused():
    with pytest.raises(UnsupportedError, match="additive"):
        lut_layer(VQLinear(coded((8, 32), "palette", 3)), torch.zeros(1, 32))
    layer = VQConv2d(coded((8, 8, 1, 1)), groups=2)
    with pytest.raises(UnsupportedError, match="grouped"):
        lut_layer(layer, torch.zeros(1, 16, 3, 3))


@pytest.mark.parametrize("out", [640, 1280, 10240])
@pytest.mark.parametrize("books", [1, 2, 3, 4])
def test_operations_are_the_formulas(out, books):
    ratio = Fraction(table_operations(out, 1280, books), dense_operations(out, 1280))
    assert ratio == Fraction(books * 256, out) + Fraction(books, 16)


def test_operations_of_a_product_counted_one_by_one():
    """Every multiplication and addition of the tables, every addition of an entry."""
    out, columns, books, size, group = 3, 16, 2, 4, 8
    counted = sum(2 for _ in range(columns // group) for _ in range(books) for _ in range(size) for _ in range(group))
    counted += sum(1 for _ in range(out) for _ in range(columns // group) for _ in range(books))
    assert table_operations(out, columns, books, size, group) == counted


@pytest.fixture(scope="module")
def vectors(repository):
    """SDXL's coded layers at 1024 x 1024."""
    text = gzip.decompress((repository / "tests" / "data" / "sdxl_base.keys.tsv.gz").read_bytes()).decode()
    rows = (line.partition("\t") for line in text.splitlines())
    return input_vectors({key: tuple(int(n) for n in shape.split(",") if n) for key, _, shape in rows}, 128, 128)


@pytest.mark.parametrize(("books", "ratio", "chosen"), [(1, "0.285", "0.285"), (2, "0.57", "0.515"),
                                                        (3, "0.855", "0.675"), (4, "1.14", "0.80")])
def test_operations_of_sdxl(vectors, books, ratio, chosen):
    tables, dense = unet_operations(vectors, books)
    assert f"{tables / dense:.{len(ratio) - 2}f}" == ratio
    assert f"{unet_operations(vectors, books, choose=True)[0] / dense:.{len(chosen) - 2}f}" == chosen
    assert dense == pytest.approx(5.98e12, rel=1e-3) and len(vectors) == 771


def test_operations_follow_the_size(vectors):
    assert {vectors[layer] for layer in vectors} == {77, 1024, 4096, 16384}
    for layer, count in vectors.items():
        if layer.shape[:2] == (320, 320):
            assert count == (4096 if layer.role == "downsample" else 16384), layer.key


def test_thesis_stores_less_than_one_and_a_half_bits_of_sdxl(vectors):
    """Codes, float16 books and row scales of each layer, by formula."""
    plan, bits, weights = thesis_plan("w1.5a8"), 0, 0
    for layer in vectors:
        spec, columns = plan.spec_for(layer), math.prod(layer.shape[1:])
        group = layer.taps if spec.by_channel(layer.taps) else 8
        books = spec.num_codebooks
        bits += layer.shape[0] * (8 * books * -(-columns // group) + 16) + 16 * books * 256 * group
        weights += layer.numel
    assert 1.4 < bits / weights < 1.5


def test_unfolding_is_the_convolutions():
    """im2col alone, against torch."""
    layer = VQConv2d(coded((6, 16, 3, 3)), stride=2, padding=1)
    x = torch.randn(1, 16, 8, 5, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(lut_layer(layer, x), F.conv2d(x, layer.weight, None, 2, 1), atol=1e-4)
