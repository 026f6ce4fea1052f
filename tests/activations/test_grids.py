"""Grids of a few levels against numbers counted one by one, and where they must change nothing."""
from __future__ import annotations

import math

import pytest
import torch
from vqpack.vq_core.activations.grids import affine, symmetric


def plain_symmetric(row, bits):
    most = 2 ** (bits - 1) - 1
    scale = max(abs(v) for v in row) / most
    return [max(-most, min(most, round(v / scale))) * scale if scale else v for v in row]


def plain_affine(value, low, high, bits):
    step = (high - low) / (2**bits - 1)
    if not step:
        return value
    zero = round(-low / step)
    return (max(0, min(2**bits - 1, round(value / step) + zero)) - zero) * step


@pytest.mark.parametrize("bits", [2, 6, 8])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 33)])
def test_symmetric_is_what_one_counts(bits, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(bits), dtype=torch.float64).float()
    wanted = torch.tensor([plain_symmetric(row, bits) for row in x.double().tolist()])
    assert torch.allclose(symmetric(x, bits, (1,)), wanted.float(), rtol=1e-5, atol=1e-7)
    assert all(len(row.unique()) <= 2**bits - 1 for row in symmetric(x, bits, (1,)))


@pytest.mark.parametrize("bits", [2, 6, 8])
def test_affine_is_what_one_counts(bits):
    x = 3 * torch.randn(201, generator=torch.Generator().manual_seed(bits))
    for low, high in ((-4.0, 5.0), (0.0, 3.0), (20.0, 21.5), (-1.0, -0.5)):
        wanted = torch.tensor([plain_affine(v, low, high, bits) for v in x.double().tolist()])
        got = affine(x, torch.tensor(low), torch.tensor(high), bits)
        assert torch.allclose(got, wanted.float(), atol=1e-5) and len(got.unique()) <= 2**bits


def test_values_inside_a_range_miss_by_half_a_step_at_most():
    x = torch.linspace(-1, 3, 999)
    got = affine(x, torch.tensor(-1.0), torch.tensor(3.0), 6)
    assert float((got - x).abs().max()) <= 4 / 63 * 1.001                          # the rounded zero moves the ends
    assert float((got - x)[100:-100].abs().max()) <= 2 / 63 * 1.001


@pytest.mark.parametrize("value", [0.0, 7.25, -1e-3, 1e30, 1e-45])
def test_a_range_without_extent_keeps_values_exactly(value):
    x = torch.full((2, 5), value)
    assert torch.equal(affine(x, torch.tensor(value), torch.tensor(value), 8), x)
    assert torch.equal(symmetric(torch.zeros(2, 5), 8, (1,)), torch.zeros(2, 5))
    assert torch.allclose(symmetric(x, 8, (1,)), x, rtol=1e-6)
    assert torch.isfinite(symmetric(x, 8, (1,))).all()


def test_error_is_that_of_uniform_rounding():
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x[0] = 1.0
    error = float((symmetric(x[None], 8, (1,)) - x).square().mean())
    assert math.isclose(error, (1 / 127) ** 2 / 12, rel_tol=0.03)
