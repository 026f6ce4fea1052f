"""Roundings of uniform codes, and the split shortcut: Q-Diffusion's two claims on a layer's outputs."""
from __future__ import annotations

import pytest
import torch
from vqpack.benchmarks.correlated import gram, inputs, weights
from vqpack.vq_core import encode
from vqpack.vq_core.encode import encode_weight, ranges
from vqpack.vq_core.encode.adaround import Schedule, round_adaptively
from vqpack.vq_core.errors import PlanError
from vqpack.vq_core.gram import Gram, output_error
from vqpack.vq_core.plan import make_plan, plan_from_json
from vqpack.vq_core.spec import UniformSpec, make_spec, spec_from_json, spec_to_json


def layer(rows, cols):
    matrix = weights(rows, cols)
    return matrix, Gram(gram(inputs(cols, 2048, 0)), 2048, gram(inputs(cols, 2048, 1)), 2048)


def relative(lost, matrix, blocks):
    return float(output_error(lost, blocks).sum() / output_error(matrix, blocks).sum())


@pytest.mark.parametrize("bits, group_size", [(4, 0), (2, 0), (4, 64)])
def test_adaround_beats_nearest_by_a_fifth_and_ends_hard(bits, group_size):
    matrix, g = layer(96, 128)
    truth = gram(inputs(128, 8192, 9))
    nearest, learned = (encode_weight(matrix, UniformSpec(bits, group_size, rounding), gram=g).weight.decode()
                        for rounding in ("nearest", "adaround"))
    assert relative(matrix - learned, matrix, truth) < 0.8 * relative(matrix - nearest, matrix, truth)


def test_every_code_is_the_floor_or_the_ceiling():
    wanted = torch.rand(20, 32, generator=torch.Generator().manual_seed(0)) * 17 - 1
    codes = round_adaptively(wanted, torch.ones(20, 1), 15, gram(inputs(32, 200, 0)), Schedule(iterations=50))
    assert torch.equal(codes, codes.round()) and codes.min() >= 0 and codes.max() <= 15
    floor, ceiling = wanted.floor().clamp(0, 15), wanted.ceil().clamp(0, 15)
    assert bool(((codes == floor) | (codes == ceiling)).all()) and not torch.equal(codes, wanted.round().clamp(0, 15))


def test_independent_inputs_are_rounded_to_the_nearest():
    wanted = torch.rand(20, 32, generator=torch.Generator().manual_seed(0)) * 15
    wanted = torch.where((wanted.frac() - 0.5).abs() < 0.01, wanted + 0.1, wanted)
    assert torch.equal(round_adaptively(wanted, torch.ones(20, 1), 15, torch.eye(32)[None]), wanted.round())


def test_a_small_layer_comes_close_to_the_best_rounding_there_is():
    """All 2^10 roundings of one row of ten columns; learned ones lose 1.24 times the best, nearest 2.05."""
    blocks, generator = gram(inputs(10, 300, 0)), torch.Generator().manual_seed(0)
    wanted = torch.rand(12, 10, generator=generator) * 15
    choices = (torch.arange(1024)[:, None] >> torch.arange(10)) & 1                 # [1024, 10]
    best = sum(float(output_error(row.floor() + choices - row, blocks).min()) for row in wanted)
    found = float(output_error(round_adaptively(wanted, torch.ones(12, 1), 15, blocks) - wanted, blocks).sum())
    nearest = float(output_error(wanted.round() - wanted, blocks).sum())
    assert best <= found * 1.0001 and found < 1.3 * best < nearest


def test_roundings_are_chosen_by_name():
    matrix, g = layer(48, 64)
    blobs = {name: encode_weight(matrix, UniformSpec(3, rounding=name), gram=g).weight.blob
             for name in ("auto", "gptq", "nearest", "adaround")}
    assert torch.equal(blobs["auto"], blobs["gptq"]) and not torch.equal(blobs["gptq"], blobs["adaround"])
    assert torch.equal(blobs["nearest"], encode_weight(matrix, UniformSpec(3)).weight.blob)
    assert torch.equal(blobs["nearest"], encode_weight(matrix, UniformSpec(3, rounding="adaround")).weight.blob)
    assert torch.equal(blobs["adaround"], encode_weight(matrix, UniformSpec(3, rounding="block"), gram=g).weight.blob)
    with pytest.raises(PlanError, match="auto, nearest, gptq, adaround, block"):
        UniformSpec(3, rounding="stochastic")


def test_plans_from_before_roundings_read_and_write_the_same():
    old = {"kind": "uniform", "bits": 4, "group_size": 64}
    assert spec_to_json(spec_from_json(old)) == old and spec_to_json(UniformSpec(8)) == {
        "kind": "uniform", "bits": 8, "group_size": 0}
    new = make_spec("uniform", 4, rounding="adaround")
    assert spec_to_json(new)["rounding"] == "adaround" and spec_from_json(spec_to_json(new)) == new
    plan = make_plan(4, "uniform", rounding="adaround")
    assert plan_from_json(plan.to_json()) == plan


def test_a_split_shortcut_saves_the_small_half():
    """Concatenated inputs, weights of one half ten times smaller and its inputs ten times larger (Q-Diffusion 3.2)."""
    matrix = weights(96, 256)
    matrix[:, 128:] /= 10
    x = torch.randn(2000, 256, generator=torch.Generator().manual_seed(5))
    x[:, 128:] *= 100
    blocks = gram(x)
    for given in (None, Gram(blocks, 2000)):
        joint, split = (encode_weight(matrix, make_spec("uniform", 4), splits=splits, gram=given)
                        for splits in ((), (128, 128)))
        lost = [matrix - coded.weight.decode() for coded in (joint, split)]
        assert relative(lost[0], matrix, blocks) >= 10 * relative(lost[1], matrix, blocks)
        assert lost[0][:, 128:].square().sum() >= 50 * lost[1][:, 128:].square().sum()


@pytest.mark.parametrize("splits", [(64, 64), (32, 32, 32, 32)])
def test_later_ranges_make_up_for_earlier_ones(splits, monkeypatch):
    matrix, g = layer(96, 128)
    truth = gram(inputs(128, 8192, 9))
    with_it = encode_weight(matrix, make_spec("trellis", 2), splits=splits, gram=g).weight.decode()
    monkeypatch.setattr(encode, "carried_over", lambda *_: torch.zeros(1))
    without = encode_weight(matrix, make_spec("trellis", 2), splits=splits, gram=g).weight.decode()
    assert relative(matrix - with_it, matrix, truth) < 0.92 * relative(matrix - without, matrix, truth)


@pytest.mark.parametrize("blocks", [1, 4])
def test_what_is_carried_over_solves_the_least_squares_problem(blocks, monkeypatch):
    """Four taps of six channels, the first four coded: errors against a dense solution, whole gram and one a tap."""
    monkeypatch.setattr(ranges, "DAMPINGS", (0.0,))
    size = 24 // blocks
    g = torch.cat([gram(inputs(size, 200, seed)) for seed in range(blocks)])
    lost = weights(5, 16)
    found = ranges.carried_over(lost, Gram(g, 200, g, 200), 4, 6, 6)                 # [5, taps * 2]
    whole = torch.block_diag(*g).double()
    channel = torch.arange(24) % 6
    before, here = (channel < 4).nonzero()[:, 0], (channel >= 4).nonzero()[:, 0]
    wanted = lost.double() @ whole[before][:, here] @ torch.linalg.inv(whole[here][:, here])
    assert torch.allclose(found.double(), wanted, atol=1e-4)
