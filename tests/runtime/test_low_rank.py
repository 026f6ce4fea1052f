"""LoRA and LoKr beside the product equal LoRA on the weight; the formula that chooses between them."""
from __future__ import annotations

import pytest
import torch
from vqpack.vq_core import cost_model
from vqpack.vq_core.low_rank import Kron, LowRank, add_beside_, beside_is_cheaper

# Relative to the output. float32: another order of sums. Else: the hidden values are rounded once, the output twice.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def low_rank(out, inputs, rank, scale=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(out, rank, generator=generator), torch.randn(rank, inputs, generator=generator), scale)


def kron(first, second, rank=0, scale=-0.3):
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    (c, d) = second
    return Kron(random(*first), (random(c, rank), random(rank, d)) if rank else (random(c, d),), scale)


def full(term) -> torch.Tensor:
    """The matrix that a term stands for."""
    if isinstance(term, LowRank):
        return term.scale * term.up.double() @ term.down.double()
    second = term.second[0].double() if len(term.second) == 1 else term.second[0].double() @ term.second[1].double()
    return term.scale * torch.kron(term.first.double(), second)


TERMS = [[low_rank(35, 21, 4)], [low_rank(35, 21, 1), low_rank(35, 21, 8, -1.5, 2)], [kron((5, 3), (7, 7))],
         [kron((7, 7), (5, 3), rank=2)], [kron((5, 3), (7, 7), rank=3), low_rank(35, 21, 4)]]


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(21,), (3, 21), (2, 5, 21)])
def test_beside_is_the_weight_changed(terms, dtype, shape):
    weight, x = torch.randn(35, 21).to(dtype), torch.randn(shape).to(dtype)
    wanted = x.double() @ (weight.double() + sum(full(term) for term in terms)).t()
    with torch.no_grad():
        y = add_beside_(torch.nn.functional.linear(x, weight), x, terms)
    assert y.dtype == dtype and y.shape == wanted.shape
    assert float((y.double() - wanted).norm() / wanted.norm()) < TOLERANCE[dtype]
    assert all(term.fits and term.shape == (35, 21) for term in terms)


def test_inputs_that_are_views():
    term, x = low_rank(35, 21, 4), torch.randn(21, 6).t()
    y = add_beside_(torch.zeros(6, 35), x, [term])
    torch.testing.assert_close(y.double(), x.double() @ full(term).t(), rtol=1e-4, atol=1e-4)


def test_factors_that_do_not_fit_are_known():
    assert not LowRank(torch.zeros(5, 3), torch.zeros(2, 7), 1.0).fits
    assert not Kron(torch.zeros(2, 2), (torch.zeros(5, 3), torch.zeros(2, 7)), 1.0).fits


def test_counted_operations_are_those_of_the_formula():
    beside, onto = cost_model.lora_beside(10, 40, 30, 4), cost_model.lora_onto(40, 30, 4)
    assert beside.operations == 2 * 10 * 4 * (30 + 40)
    assert onto.operations == 2 * 40 * 30 * 4 + 3 * 40 * 30
    assert low_rank(40, 30, 4).beside(10, 2) == beside and low_rank(40, 30, 4).onto(2) == onto
    through = kron((4, 4), (80, 80), rank=4).beside(64, 2)
    assert through.operations == 2 * 64 * 4 * (80 * 4 + 4 * 80) + 2 * 64 * 80 * 4 * 4
    assert through.operations < kron((4, 4), (80, 80)).beside(64, 2).operations


def test_few_tokens_go_beside_and_many_onto_the_weight():
    term = low_rank(1280, 1280, 32)
    chosen = [beside_is_cheaper([term], tokens, torch.float16, "cuda") for tokens in (1, 154, 256, 2**20)]
    assert chosen == [True, True, True, False]
    crossing = [tokens for tokens in range(64, 10_000, 64)
                if not beside_is_cheaper([term], tokens, torch.float16, "cuda")]
    assert crossing == list(range(crossing[0], 10_000, 64))          # one crossing, and it is kept


def test_a_higher_rank_is_cheaper_beside_when_tokens_are_few():
    assert beside_is_cheaper([low_rank(64, 64, 256)], 4, torch.float32, "cpu")
    assert not beside_is_cheaper([low_rank(64, 64, 256)], 4096, torch.float32, "cpu")
