"""additive codes whose groups are kernels: exact where it can be, gains where taps go together, the gram's order."""
from __future__ import annotations

import pytest
import torch
from vqpack.benchmarks.correlated import gram, inputs, weights
from vqpack.vq_core.encode import additive, encode_weight
from vqpack.vq_core.encode.order import by_channel, feedback_in_order
from vqpack.vq_core.errors import PlanError
from vqpack.vq_core.gram import Gram, output_error
from vqpack.vq_core.plan import make_plan, plan_from_json
from vqpack.vq_core.planning.budget import blob_bytes
from vqpack.vq_core.spec import AdditiveSpec, spec_to_json

KERNEL = AdditiveSpec(2, conv_group="kernel")
QUICK = additive.Effort(sample=2**12, iterations=4, rounds=0, beam=4)


def to_matrix(weight):
    return weight.permute(0, 2, 3, 1).flatten(1)


def relative(weight, coded, blocks):
    lost, whole = to_matrix(weight - coded.weight.decode()), to_matrix(weight)
    return float(output_error(lost, blocks).sum() / output_error(whole, blocks).sum())


def smooth(out, channels, height=3, width=3, seed=0):
    """Kernels whose taps resemble each other."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(out, channels, 1, 1, generator=g) + 0.5 * torch.randn(out, channels, height, width, generator=g)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (5, 5)])
def test_kernels_out_of_one_book_are_exact(kernel):
    """At most 256 different kernels, all rows of one size: one book holds them."""
    g = torch.Generator().manual_seed(0)
    book = torch.randint(-99, 100, (20, *kernel), generator=g).float()
    book = book / book.square().mean((1, 2), keepdim=True).sqrt()
    weight = book[torch.randint(0, 20, (50, 37), generator=g)]
    for spec, most in ((AdditiveSpec(1, conv_group="kernel"), 1e-6), (AdditiveSpec(1), None)):
        coded = encode_weight(weight, spec)
        taps = kernel[0] * kernel[1]
        if most is None:
            assert coded.relative_error > 0.05                 # groups of 8 channels cannot
        else:
            assert coded.relative_error < most
            assert coded.weight.layout.parts[0].order == 1 and coded.weight.parts[0][3].group == taps


@pytest.mark.parametrize("shape, splits", [((5, 7, 3, 3), ()), ((33, 6, 3, 3), (4, 2)), ((9, 5, 1, 1), ()),
                                           ((4, 9), ()), ((3, 2, 9, 9), ()), ((1, 1, 3, 3), ())])
def test_odd_sizes_with_and_without_a_gram(shape, splits):
    cols = torch.Size(shape[1:]).numel()
    weight, taps = weights(shape[0], cols).reshape(shape), cols // shape[1]
    weight[0] = 0
    one_a_tap = torch.stack([gram(inputs(shape[1], 300, tap))[0] for tap in range(taps)])
    for blocks in (None, gram(inputs(cols, 300, 0)), one_a_tap):
        coded = encode_weight(weight, KERNEL, splits=splits, gram=None if blocks is None else Gram(blocks, 300))
        decoded = coded.weight.decode()
        assert decoded.shape == weight.shape and not decoded[0].any() and coded.relative_error < 1
        kernels = 1 < taps <= 64
        assert {part.order for part in coded.weight.layout.parts} == {int(kernels)}
        assert {part.group for part in coded.weight.layout.parts} == {taps if kernels else 8}
        assert coded.weight.nbytes == blob_bytes(shape, splits, KERNEL)


def test_fewer_bits_lose_no_more_where_taps_go_together():
    weight = smooth(256, 32)
    kernel, plain = (encode_weight(weight, spec) for spec in (KERNEL, AdditiveSpec(2)))
    assert kernel.weight.parts[0][3].codes.numel() == 256 * 32 * 2           # 8 / 9 of a bit, times two
    assert kernel.weight.bits < plain.weight.bits and kernel.relative_error < 0.7 * plain.relative_error
    rough = torch.randn(256, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    assert encode_weight(rough, KERNEL).relative_error > encode_weight(rough, AdditiveSpec(2)).relative_error


def test_the_gram_helps_and_in_another_order_it_does_not():
    """T4: judged on true outputs; a gram whose columns are ordered (channel, tap) must be worse."""
    weight, truth = smooth(96, 16), gram(inputs(144, 8192, 9))
    blocks = gram(inputs(144, 2000, 0))
    swapped = by_channel(16, 9)
    found = [encode_weight(weight, KERNEL, gram=g, effort=QUICK) for g in (
        Gram(blocks, 2000), Gram(blocks[:, swapped][:, :, swapped], 2000), None)]
    right, wrong, free = (relative(weight, coded, truth) for coded in found)
    assert right < 0.8 * wrong and right < 0.7 * free
    assert found[0].output_error == pytest.approx(right, rel=0.15)


def test_grams_of_single_taps_are_the_whole_one_without_what_taps_share():
    taps = torch.stack([gram(inputs(6, 400, tap))[0] for tap in range(9)])
    order, whole = by_channel(6, 9), torch.block_diag(*taps)[None]
    one, other = (feedback_in_order(Gram(blocks, 10**6), order) for blocks in (taps, whole))
    for name in ("gram", "forward", "pivots"):
        found, expected = getattr(one, name), getattr(other, name)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=2e-2 * float(expected.abs().max()))
    assert torch.equal(torch.arange(54)[order].view(6, 9), torch.arange(54).view(9, 6).t())


def test_plans_carry_it_and_older_plans_stay_as_they_were():
    plan = make_plan(2, "additive", conv_group="kernel")
    assert plan_from_json(plan.to_json()) == plan and plan.to_json()["unet"]["conv_group"] == "kernel"
    assert "conv_group" not in spec_to_json(AdditiveSpec(2))
    with pytest.raises(PlanError, match="channels, kernel, got 'taps'"):
        AdditiveSpec(2, conv_group="taps")
    with pytest.raises(PlanError, match="no option 'conv_group'"):
        make_plan(2, "trellis", conv_group="kernel")
