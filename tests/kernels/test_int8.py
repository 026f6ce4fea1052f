"""int8_linear: against rounding x by hand in float64, what it refuses; Triton's kernels through the interpreter."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from vqpack.kernels import capabilities, dispatch, int8_kitchen, int8_linear, int8_torch
from vqpack.kernels.dispatch import BackendError
from vqpack.kernels.rotation import hadamard_matrix, signs


def by_hand(x, part, bits):
    """In float64, from the definition: the whole rotation matrix, one scale a token."""
    u = x.double() if part.scales.col is None else x.double() * part.scales.col.double()
    if part.rotation:
        blocks = [hadamard_matrix(part.rotation, dtype=torch.float64)] * (part.channels // part.rotation)
        flip = signs(part.rotation_seed, part.channels).double()
        u = (u * flip) @ torch.block_diag(*blocks)
    scale = u.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    rounded = (u / scale.clamp(min=1e-300)).round() * scale
    integers = dispatch.decode_part(part, dtype=torch.int8).double()
    row = 1.0 if part.scales.row is None else part.scales.row.double()
    return (rounded @ integers.t()) * row * part.scales.gain


@pytest.fixture
def kinds(make):
    return {"trellis": make.trellis(), "rotated": make.trellis(rotation=8, col=True),
            "rotated 128": make.trellis(channels=256, rotation=128), "columns": make.trellis(col=True),
            "uniform": make.lut(taps=1, uniform=True, rotation=16)}


@pytest.mark.parametrize("kind", ["trellis", "rotated", "rotated 128", "columns", "uniform"])
@pytest.mark.parametrize("bits", [8, 6, 2])
def test_it_is_the_product_of_the_rounded_input(kinds, kind, bits):
    part = kinds[kind]
    x, bias = torch.randn(2, 7, part.channels), torch.randn(part.out_features)
    want = by_hand(x, part, bits) + bias.double()
    found = int8_linear.int8_linear(x, part, bias, bits)
    assert found.dtype == torch.float32 and found.shape == want.shape
    # a value on the edge between two integers may fall either way: one step of one input
    far = (found.double() - want).abs().max() / want.abs().max()
    assert far < (1e-5 if bits == 8 else 0.03), far


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_comes_in_the_inputs_dtype(kinds, dtype):
    part = kinds["rotated"]
    x = torch.randn(5, part.channels).to(dtype)
    found = int8_linear.int8_linear(x, part)
    assert found.dtype == dtype
    assert torch.equal(found, int8_linear.int8_linear(x.float(), part).to(dtype))


def test_a_token_does_not_depend_on_its_company(kinds):
    part = kinds["rotated"]
    x = torch.randn(9, part.channels) * torch.logspace(-4, 4, 9)[:, None]
    alone = torch.cat([int8_linear.int8_linear(row[None], part) for row in x])
    assert torch.equal(int8_linear.int8_linear(x, part), alone)


def test_zeros_nan_and_infinity_stay_in_their_token(kinds):
    part, bias = kinds["rotated"], torch.randn(kinds["rotated"].out_features)
    x = torch.randn(4, part.channels)
    want = int8_linear.int8_linear(x, part, bias)
    x[0], x[1, 3], x[2, 5] = 0, float("nan"), float("inf")
    found = int8_linear.int8_linear(x, part, bias)
    assert torch.equal(found[0], bias) and torch.equal(found[3], want[3])
    assert found[1:3].isnan().all()
    assert int8_linear.int8_linear(x[:0], part).shape == (0, part.out_features)


def test_integers_may_be_a_range_of_a_wider_matrix(kinds):
    part = kinds["rotated"]
    wide = torch.full((part.out_features, part.channels + 5), 99, dtype=torch.int8)
    wide[:, 3:-2] = dispatch.decode_part(part, dtype=torch.int8)
    x = torch.randn(6, part.channels)
    assert torch.equal(int8_linear.int8_linear(x, part, integers=wide[:, 3:-2]), int8_linear.int8_linear(x, part))


def test_sums_are_padded_as_cublas_wants_them(monkeypatch):
    """The shapes a GPU's library refuses are padded before it and cut after it."""
    seen = []

    def strict(a, b):
        assert len(a) > 16 and a.shape[1] % 8 == 0 and b.shape[1] % 8 == 0
        seen.append(tuple(a.shape))
        return (a.long() @ b.long()).int()
    monkeypatch.setattr(torch, "_int_mm", strict)
    q, w = (torch.randint(-127, 128, shape, dtype=torch.int8) for shape in ((5, 13), (11, 13)))

    class Cuda(torch.Tensor):
        device = torch.device("cuda")
    found = int8_torch.multiply(q.as_subclass(Cuda), w)
    assert torch.equal(torch.Tensor(found.float()), (q.long() @ w.long().t()).float()) and seen == [(17, 16)]


def test_comfy_kitchens_product_agrees(make, monkeypatch):
    """Its interface, played by the definition it documents: x rounded by row, one scale for each row of the weight."""
    def played(x, weight, weight_scale, bias, out_dtype):
        assert weight.is_contiguous() and weight_scale.shape == (len(weight),) and weight_scale.dtype == torch.float32
        q, scale = int8_torch.rounded(x.float(), 8)
        y = (q.long() @ weight.long().t()) * scale[:, None] * weight_scale
        return (y if bias is None else y + bias).to(out_dtype)
    kitchen = type(sys)("comfy_kitchen")
    kitchen.int8_linear = played
    monkeypatch.setitem(sys.modules, "comfy_kitchen", kitchen)
    for family in ("lut", "trellis"):
        assert int8_kitchen.self_test(family, torch.device("cpu")) is None
    kitchen.int8_linear = lambda *_: played(*_) * 1.1
    assert "away from torch's" in int8_kitchen.self_test("trellis", torch.device("cpu"))


@pytest.mark.parametrize("part,words", [
    (lambda make: make.lut(), "got 3 taps"),
    (lambda make: make.lut(taps=1, group=8), "got scales of groups"),
    (lambda make: make.additive(taps=1), "int8 holds -128 to 127"),
])
def test_parts_without_an_int8_product(make, part, words):
    with pytest.raises(BackendError, match=words):
        int8_linear.choose(part(make), torch.float32)


def test_every_backends_reason_is_told(make, monkeypatch):
    monkeypatch.setattr(dispatch, "_self_tests", {})
    monkeypatch.setattr(int8_torch, "multiply", lambda q, w: q.int() @ w.int().t() + 1)
    with pytest.raises(BackendError, match="nothing here multiplies int8") as caught:
        int8_linear.choose(make.trellis(), torch.float16)
    assert "its products are wrong" in caught.value.reasons["torch"]
    assert "runs on cuda, got cpu" in caught.value.reasons["triton"]
    assert set(caught.value.reasons) == {"comfy_kitchen", "torch", "triton"}
    monkeypatch.setattr(dispatch, "_self_tests", {})


@pytest.mark.parametrize("options,error,words", [
    ({"x": torch.ones(1, 31)}, ValueError, r"x must be \[..., 32\]"),
    ({"x": torch.ones(1, 32).double()}, TypeError, "got torch.float64"),
    ({"x": torch.ones(1, 32, device="meta")}, ValueError, "x must be on cpu"),
    ({"bias": torch.ones(69)}, ValueError, r"bias must be \[70\]"),
    ({"bits": 9}, ValueError, "2 to 8 bits"),
    ({"integers": torch.ones(70, 31, dtype=torch.int8)}, ValueError, r"integers must be torch.int8 \[70, 32\]"),
])
def test_inputs_that_do_not_fit_are_refused(make, options, error, words):
    with pytest.raises(error, match=words):
        int8_linear.int8_linear(**{"x": torch.ones(1, 32), "part": make.trellis(), **options})


def test_interpreted_products_are_close():
    if capabilities.package_version("triton") is None:
        pytest.skip(f"triton {capabilities.package_problem('triton')}")
    script = Path(__file__).with_name("int8_interpreted.py")
    done = subprocess.run([sys.executable, str(script)], env={**os.environ, "TRITON_INTERPRET": "1"},
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all int8 products are close" in done.stdout
