"""Predicted damage against damage: what coding a layer really does to its outputs."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from vqpack.vq_core.arch import make_layer
from vqpack.vq_core.encode import encode_weight, to_matrix
from vqpack.vq_core.gram import Gram, output_error
from vqpack.vq_core.planning.costs import Costs
from vqpack.vq_core.spec import DenseSpec, make_spec

KEY = "model.diffusion_model.output_blocks.1.0.skip_connection.weight"
SPECS = tuple(make_spec("trellis", bits, window=8) for bits in (2, 3)) + (make_spec("uniform", 4), DenseSpec())


class FakeCalibration:
    """One layer, its gram and its sensitivities."""

    def __init__(self, gram: Gram, sensitivity: torch.Tensor):
        self.layers = {KEY: type("Entry", (), {"group": 0})()}
        self._gram, self._sensitivity = gram, sensitivity

    def gram(self, key):
        return self._gram

    def sensitivity(self, key):
        return self._sensitivity


def inputs(columns: int, seed: int) -> torch.Tensor:
    """Correlated samples whose directions differ by a factor of 30 in strength."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(columns, columns, generator=torch.Generator().manual_seed(5)))[0]
    return torch.randn(4096, columns, generator=generator) * torch.logspace(0, -1.5, columns) @ mix


@pytest.fixture(scope="module")
def case():
    """(layer, weight, gram, sensitivities of the rows): 128 rows, split input of 64 + 32 channels."""
    samples = inputs(96, 0)
    gram = Gram((samples.t() @ samples / len(samples))[None], len(samples))
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(128, 96, 1, 1, generator=generator) * torch.logspace(0, -1, 128)[:, None, None, None]
    layer = make_layer(KEY, tuple(weight.shape), {"output_blocks.1.": (64, 32)})
    assert layer.splits == (64, 32)
    return layer, weight, gram, torch.rand(128, generator=generator) + 0.1


def whole(case):
    """The case as a layer coded in one range."""
    layer, *others = case
    return replace(layer, splits=()), *others


def damage(case, spec, gram) -> float:
    """What coding does to the outputs, rows weighted by their sensitivities."""
    layer, weight, seen, sensitivity = case
    coded = encode_weight(weight, spec, splits=layer.splits, gram=gram)
    lost = to_matrix(weight - coded.weight.decode(torch.float32), 0, weight.shape[1])
    return float((sensitivity * output_error(lost, seen.blocks)).sum())


def test_with_a_gram(case):
    layer, weight, gram, sensitivity = whole(case)
    found = Costs(SPECS, None, FakeCalibration(gram, sensitivity)).of(layer, weight)
    for spec, cost in zip(SPECS[:3], found.costs, strict=False):
        assert cost / damage(whole(case), spec, gram) == pytest.approx(1, abs=0.25), spec
    assert found.costs[3] == 0 and found.costs[0] > 2 * found.costs[1]


def test_what_ranges_make_up_for_each_other_is_not_foreseen(case):
    """Later ranges correct earlier ones (encode/ranges.py), so the damage is less than predicted, never far more."""
    layer, weight, gram, sensitivity = case
    found = Costs(SPECS, None, FakeCalibration(gram, sensitivity)).of(layer, weight)
    for spec, cost in zip(SPECS[:3], found.costs, strict=False):
        assert 0.9 < cost / damage(case, spec, gram) < 2, spec


def test_by_a_factor_alone(case):
    layer, weight, gram, sensitivity = case
    measured = Costs(SPECS, None, FakeCalibration(gram, sensitivity)).of(layer, weight)
    found = Costs(SPECS, None, None, {KEY: measured.factor}).of(layer, weight)
    for spec, cost in zip(SPECS[:3], found.costs, strict=False):
        assert cost / damage(case, spec, None) == pytest.approx(1, abs=0.25), spec
    assert found.factor == pytest.approx(measured.factor)
    assert found.costs[0] > measured.costs[0]              # without feedback there is more to lose
    guessed = Costs(SPECS, lambda _, squares: 2.0, None).of(layer, weight)
    assert guessed.costs[0] == pytest.approx(found.costs[0] * 2 / measured.factor)


def test_degenerate_layers_cost_nothing(case):
    layer, weight, gram, sensitivity = case
    zeros = Gram(torch.zeros_like(gram.blocks), 10)
    assert Costs(SPECS, lambda *_: 1.0, FakeCalibration(zeros, sensitivity)).of(layer, weight).costs[0] > 0
    assert Costs(SPECS, lambda *_: 0.0).of(layer, torch.zeros_like(weight)).costs == (0.0,) * 4
