"""int8 products in a UNet: as the emulation computes them, kept or decoded anew, with a branch, loaded from a file."""
from __future__ import annotations

import pytest
import torch
from vqpack.vq_core.activations import Activations, int8, make_activations, quantize_activations
from vqpack.vq_core.activations.int8 import Int8Product, chosen, int8_product, linear_spec, why_emulated
from vqpack.vq_core.activations.points import find_points
from vqpack.vq_core.activations.specs import KeepSpec, TokenSpec
from vqpack.vq_core.encode import encode_weight
from vqpack.vq_core.errors import PlanError
from vqpack.vq_core.layers import replace_layers
from vqpack.vq_core.record import build_blob, parse_blob
from vqpack.vq_core.spec import PaletteSpec, TrellisSpec, UniformSpec

TRELLIS = TrellisSpec(3, 8, -1)


def coded(spec=TRELLIS, out=40, inputs=64, splits=(), seed=0):
    weight = torch.randn(out, inputs, generator=torch.Generator().manual_seed(seed))
    return encode_weight(weight, spec, splits=splits).weight


def apart(found, want):
    return float((found - want).norm() / want.norm())


@pytest.fixture
def emulations(monkeypatch):
    """How often an int8 product was emulated."""
    count, own = [], int8.emulated_product
    monkeypatch.setattr(int8, "emulated_product", lambda *given: count.append(1) or own(*given))
    return count


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("options", [{}, {"splits": (24, 40)}, {"inputs": 50}, {"spec": TrellisSpec(3, 8, 16)}])
def test_the_product_is_the_emulated_one(emulations, options, bits):
    weight, spec = coded(**options), TokenSpec(bits)
    x, bias = torch.randn(3, 5, weight.shape[1]), torch.randn(40)
    want = int8.emulated_product(x, weight, bias, spec)
    emulations.clear()
    assert apart(int8_product(x, weight, bias, spec), want) < 2e-3 and not emulations
    kept = Int8Product(spec, keep=True)
    assert torch.equal(kept(x, weight, bias), int8_product(x, weight, bias, spec))
    assert kept.integers.dtype == torch.int8 and torch.equal(kept(x, weight, bias), kept(x, weight, bias))
    exact = torch.nn.functional.linear(x, weight.decode(), bias)
    assert 1e-4 < apart(want, exact) < 4 / 2**bits                     # rounding is seen, and no more than that


@pytest.mark.parametrize("spec,words", [(PaletteSpec(4), "int8 holds -128 to 127"),
                                        (UniformSpec(4, group_size=32), "scales of groups")])
def test_codes_that_int8_does_not_hold_are_emulated(emulations, spec, words):
    weight, x = coded(spec), torch.randn(5, 64)
    assert words in why_emulated(weight, torch.float32)
    found = Int8Product(TokenSpec(8), keep=True)(x, weight, None)
    assert emulations and 1e-4 < apart(found, torch.nn.functional.linear(x, weight.decode())) < 0.02
    assert "not to be" in why_emulated(coded(TrellisSpec(3, 8, 16)), torch.float32, rotated=False)


def test_a_low_rank_branch_sees_the_input_as_it_is():
    plain, x = coded(), torch.randn(6, 64)
    down, up = torch.randn(4, 64).half(), torch.randn(40, 4).half()
    blob = build_blob(plain.shape, plain.source_dtype, list(plain.parts), (down, up))
    whole = parse_blob(blob, plain.tables, "one")
    want = int8_product(x, plain, None, TokenSpec(4)) + x @ down.float().t() @ up.float().t()
    assert apart(int8_product(x, whole, None, TokenSpec(4)), want) < 1e-5
    assert apart(int8.emulated_product(x, whole, None, TokenSpec(4)), want) < 2e-3


def test_a_unet_computes_what_the_emulation_computes(unet, calls):
    keys = {point.key: point.module for point in find_points(unet) if point.side == "input" and not point.convolution}
    shapes = {key: unet.get_submodule(module).weight for key, module in keys.items()}
    weights = {keys[key]: encode_weight(weight, TRELLIS, key=key).weight for key, weight in shapes.items()
               if weight.dim() == 2 and weight.shape[1] >= 8}
    replace_layers(unet, weights)
    settings = make_activations("int8")
    convolutions = tuple((point.key, KeepSpec()) for point in find_points(unet) if point.convolution)
    with quantize_activations(unet, Activations(settings.inputs, rules=settings.rules, layers=convolutions)):
        want = calls.ask(unet, 1)
    plain = calls.ask(unet, 1)
    for key, module in keys.items():
        spec = linear_spec(settings, key)
        assert (spec is None) == any(word in key for word in ("attn2.to_k", "attn2.to_v", "emb"))
        if spec is not None and module in weights:
            unet.get_submodule(module).product = Int8Product(spec)
    found = calls.ask(unet, 1)
    assert apart(found, want) < 0.2 * apart(plain, want) and apart(plain, want) > 1e-4


def test_what_a_loader_may_be_asked_for():
    assert chosen(None, {}) is None and chosen("none", {}) is None and chosen("file", {}) is None
    assert chosen("int6", {}) == make_activations("int6")
    plan = '{"activations": {"inputs": {"kind": "token", "bits": 7}}}'
    assert chosen("file", {"vqpack.plan": plan}).inputs == TokenSpec(7)
    for name in ("dgq6", "talsq8"):
        with pytest.raises(PlanError, match="expected int8, int6 or none"):
            chosen(name, {})
    with pytest.raises(PlanError, match="unknown activations 'int9'"):
        chosen("int9", {})
