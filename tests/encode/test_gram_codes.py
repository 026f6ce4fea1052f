"""additive and product codes with a gram: monotone, against GPTQ and data-free codes, exact algebra, merged books."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from vqpack.benchmarks.correlated import gram, inputs, weights
from vqpack.kernels.reference import decode_part
from vqpack.vq_core.encode import additive, encode_weight, merging
from vqpack.vq_core.encode.alternate import refit_books, refit_scales, start, sweep
from vqpack.vq_core.encode.kmeans import cluster_sums, fit, nearest
from vqpack.vq_core.encode.merging import merge
from vqpack.vq_core.encode.product import encode_product
from vqpack.vq_core.encode.vectors import normalized, row_scales
from vqpack.vq_core.errors import PlanError
from vqpack.vq_core.gram import Gram, output_error
from vqpack.vq_core.spec import AdditiveSpec, ProductSpec, UniformSpec, spec_from_json, spec_to_json

QUICK = additive.Effort(sample=2**12, iterations=4, rounds=0, beam=4)


def relative(lost, matrix, blocks):
    return float(output_error(lost, blocks).sum() / output_error(matrix, blocks).sum())


def layer(rows, cols, count=2048):
    return weights(rows, cols), Gram(gram(inputs(cols, count, 0)), count, gram(inputs(cols, count, 1)), count)


def k_means(matrix, books, effort=QUICK):
    """Books [M, 256, 8] and codes of the data-free start."""
    scales = row_scales(matrix)
    vectors = normalized(matrix, scales, 8).flatten(0, 1)
    trained = additive.train(vectors, torch.ones(len(vectors)), AdditiveSpec(books), effort, 0)
    return scales, trained[None], additive.beam_search(vectors, trained, effort.beam).view(len(matrix), -1, books)


def test_no_step_raises_the_loss_and_the_search_ends_far_below_k_means():
    """methods of VQDM: every sweep lowers or keeps the loss, and the end is at most .40 of the start."""
    matrix, g = layer(256, 192)
    scales, books, codes = k_means(matrix, 2)
    coded = replace(start(matrix, scales, books, g, 4), codes=codes)
    losses, generator = [coded.loss()], torch.Generator().manual_seed(0)
    for _ in range(4):
        for step in (refit_scales, refit_books, lambda c: sweep(c, 4, generator)):
            coded = step(coded)
            losses.append(coded.loss())
    assert all(after <= 1.0001 * before for before, after in zip(losses, losses[1:], strict=False))
    assert coded.loss() < 0.40 * losses[0]
    for at in range(3):                    # scales, books and codes each gain something in the first round
        assert losses[at + 1] < losses[at]


def test_a_wider_beam_and_more_sweeps_gain():
    matrix, g = layer(128, 128)
    efforts = [replace(QUICK, beam=beam, sweeps=sweeps) for beam, sweeps in ((1, 1), (8, 1), (8, 6))]
    errors = [encode_weight(matrix, AdditiveSpec(2), gram=g, effort=effort).output_error for effort in efforts]
    assert errors[0] > errors[1] > errors[2]


def test_two_books_lose_about_half_of_what_gptq_loses_at_two_bits():
    matrix, g = layer(1280, 256)
    truth = gram(inputs(256, 4096, 9))
    found = encode_weight(matrix, AdditiveSpec(2), gram=g, effort=QUICK)
    gptq = encode_weight(matrix, UniformSpec(2, rounding="gptq"), gram=g)
    assert found.output_error < 0.55 * gptq.output_error and found.weight.bits < gptq.weight.bits + 0.2
    ours, theirs = (relative(matrix - coded.weight.decode(), matrix, truth) for coded in (found, gptq))
    assert ours < 0.55 * theirs and ours == pytest.approx(found.output_error, rel=0.15)


@pytest.mark.parametrize("spec, most", [(AdditiveSpec(1), 0.75), (AdditiveSpec(2), 0.6), (ProductSpec(1), 0.75),
                                        (ProductSpec(2), 0.6), (ProductSpec(3), 0.6)])
def test_the_gram_lowers_the_error_of_true_outputs(spec, most):
    matrix, g = layer(320, 128)
    truth, effort = gram(inputs(128, 8192, 9)), {"effort": QUICK} if spec.kind == "additive" else {}
    free, calibrated = encode_weight(matrix, spec, **effort), encode_weight(matrix, spec, gram=g, **effort)
    errors = [relative(matrix - found.weight.decode(), matrix, truth) for found in (free, calibrated)]
    assert errors[1] < most * errors[0] and calibrated.weight.bits == free.weight.bits
    assert calibrated.output_error == pytest.approx(errors[1], rel=0.15)


@pytest.mark.parametrize("spec", [AdditiveSpec(2), ProductSpec(2)])
def test_a_convolutions_gram_in_the_wrong_order_is_worse(spec):
    """A gram ordered (channel, tap) instead of (tap, channel) must raise the true error of outputs."""
    weight = weights(96, 144).reshape(96, 16, 3, 3)
    blocks = gram(inputs(144, 2000, 0))
    swapped = torch.arange(144).view(9, 16).t().flatten()
    effort = {"effort": QUICK} if spec.kind == "additive" else {}
    decoded = [encode_weight(weight, spec, gram=Gram(g, 2000), **effort).weight.decode()
               for g in (blocks, blocks[:, swapped][:, :, swapped])]
    matrix, right, wrong = (w.permute(0, 2, 3, 1).reshape(96, -1) for w in (weight, *decoded))
    right, wrong = (relative(matrix - found, matrix, blocks) for found in (right, wrong))
    assert right < 0.8 * wrong


@pytest.mark.parametrize("blocks", [1, 3])
def test_refitted_books_solve_the_normal_equations(blocks):
    """Conjugate gradients against a dense least-squares solution of vec(W L) = design books, L Lᵀ the gram."""
    generator = torch.Generator().manual_seed(0)
    matrix, g = weights(20, 24), Gram(gram(inputs(24, 200, 0)), 200)
    books = torch.randn(blocks, 2, 5, 4, generator=generator)
    coded = start(matrix, row_scales(matrix), books, g, 2)
    found = refit_books(coded, steps=400)
    root = torch.linalg.cholesky(coded.gram[0].double())
    columns = []
    for i in range(books.numel()):
        one = torch.zeros(books.numel())
        one[i] = 1
        unit = replace(coded, books=one.view(books.shape)).sums() * coded.scales[:, None]
        columns.append((unit.double() @ root).flatten())
    design, target = torch.stack(columns, 1), (matrix.double() @ root).flatten()
    best = torch.linalg.lstsq(design, target[:, None], driver="gelsd").solution
    least = float((target - (design @ best)[:, 0]).square().sum())
    assert coded.loss() > 1.05 * least and found.loss() == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize("spec", [AdditiveSpec(2), ProductSpec(2)])
@pytest.mark.parametrize("shape, splits", [((5, 7), ()), ((33, 6, 3, 3), (4, 2)), ((40, 32, 3, 3), ()), ((1, 1), ())])
def test_odd_shapes_splits_blocks_and_dead_rows(spec, shape, splits):
    cols = torch.Size(shape[1:]).numel()
    taps = cols // shape[1]
    weight = weights(shape[0], cols).reshape(shape)
    weight[0] = 0
    one_a_tap = torch.stack([gram(inputs(shape[1], 300, tap))[0] for tap in range(taps)])
    for blocks in (gram(inputs(cols, 300, 0)), one_a_tap, torch.zeros(1, cols, cols)):
        coded = encode_weight(weight, spec, splits=splits, gram=Gram(blocks, 300))
        decoded = coded.weight.decode()
        assert not decoded[0].any() and torch.isfinite(decoded).all() and coded.relative_error < 1


def test_the_same_codes_with_any_number_of_threads():
    matrix, g = layer(64, 96, 300)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            specs = (AdditiveSpec(2), ProductSpec(2))
            found.append([encode_weight(matrix, spec, gram=g).weight.blob for spec in specs])
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_books_by_position_halve_the_error_of_columns_of_uneven_size():
    """One of DPQ's claims: equal size of book and of group, the scale of columns differs from position to position."""
    matrix = weights(512, 64) * torch.exp(1.2 * torch.randn(16, generator=torch.Generator().manual_seed(3))
                                          ).repeat_interleave(4)
    book_bits = 256 * 4 * 16 / matrix.numel()
    errors = {}
    for blocks in (1, 16):
        part = encode_product(matrix, ProductSpec(2, max_codebook_bits=blocks * book_bits), channels=64, taps=1)
        assert part.codebooks.shape == (blocks, 1, 256, 4)
        assert 16 * part.codebooks.numel() + 8 * part.codes.numel() == (blocks * book_bits + 2) * matrix.numel()
        errors[blocks] = float((decode_part(part) - matrix).square().sum() / matrix.square().sum())
    assert errors[16] <= 0.5 * errors[1]


@pytest.mark.parametrize("keep", [128, 64, 32])
def test_merging_by_ward_beats_usage_and_usage_beats_chance(keep):
    points = torch.randn(1, 768, 4, generator=torch.Generator().manual_seed(0))
    entries = fit(points, torch.ones(1, 768), 256, 8)
    counts = cluster_sums(points, torch.ones(1, 768), nearest(points, entries), 256)[1][0]
    chance = entries[0][torch.randperm(256, generator=torch.Generator().manual_seed(0))[:keep]]
    errors = [float((points[0] - book[nearest(points, book[None])[0]]).square().sum()) for book in
              (merge(entries[0], counts, keep), merge(entries[0], counts, keep, "usage"), chance)]
    assert errors == sorted(errors) and errors[0] < 0.95 * errors[1]


def test_ward_merges_the_cheapest_pairs_by_hand():
    entries, counts = torch.tensor([[0.0], [1.0], [10.0], [10.5], [30.0]]), torch.tensor([1.0, 3.0, 100.0, 100.0, 0.0])
    # pairs of 30 cost nothing, for nothing uses it; then 0 and 1 at .75 before 10 and 10.5 at 12.5
    assert merge(entries, counts, 4).flatten().tolist() == [0, 1, 10, 10.5]
    assert merge(entries, counts, 3).flatten().tolist() == [0.75, 10, 10.5]
    assert merge(entries, counts, 9) is entries


@pytest.mark.parametrize("how", ["ward", "usage"])
def test_books_merged_from_single_positions_keep_the_layout(how):
    matrix = weights(256, 64)
    plain, merged = (encode_product(matrix, ProductSpec(1, merging=one), channels=64, taps=1)
                     for one in ("none", how))
    assert merged.codebooks.shape == plain.codebooks.shape and not torch.equal(merged.codebooks, plain.codebooks)
    errors = [float((decode_part(part) - matrix).square().sum() / matrix.square().sum()) for part in (plain, merged)]
    assert errors[1] < 1.3 * errors[0]
    spec = ProductSpec(1, merging=how)
    assert spec_to_json(spec)["merging"] == how and spec_from_json(spec_to_json(spec)) == spec
    assert "merging" not in spec_to_json(ProductSpec(1))           # files made before it was there keep their plan
    with pytest.raises(PlanError, match="none, usage, ward, got 'random'"):
        ProductSpec(1, merging="random")
    with pytest.raises(PlanError, match="max_codebook_bits"):
        ProductSpec(1, max_codebook_bits=0)


@pytest.mark.parametrize("bits, limit", [(1, 6), (2, 3), (2, 1.2)])
@pytest.mark.parametrize("how", ["usage", "ward"])
def test_merged_books_keep_to_their_bits(bits, limit, how):
    matrix = weights(192, 64)
    part = encode_product(matrix, ProductSpec(bits, limit, how), channels=64, taps=1)
    assert limit / 2 * matrix.numel() < 16 * part.codebooks.numel() <= limit * matrix.numel()


@pytest.mark.parametrize("count, keep", [(50, 7), (120, 90), (9, 8), (9, 1)])
def test_ward_is_the_greedy_search_for_the_cheapest_pair(count, keep):
    g = torch.Generator().manual_seed(count)
    entries, counts = torch.randn(count, 3, generator=g).double(), 5 * torch.rand(count, generator=g).double()
    left, mass = entries.clone(), counts.clone()
    while len(left) > keep:
        cost = torch.cdist(left, left).square() * mass[:, None] * mass / (mass[:, None] + mass)
        i, j = sorted(divmod(int(cost.fill_diagonal_(torch.inf).argmin()), len(left)))
        left[i] = (left[i] * mass[i] + left[j] * mass[j]) / (mass[i] + mass[j])
        mass[i] += mass[j]
        left, mass = (torch.cat([part[:j], part[j + 1:]]) for part in (left, mass))
    assert torch.allclose(merge(entries, counts, keep), left)


def test_many_entries_are_merged_in_parts(monkeypatch):
    """Halving in parts first: the same number, nearly the error of merging all at once."""
    points = torch.randn(1, 1024, 4, generator=torch.Generator().manual_seed(0))
    whole = merge(points[0], torch.ones(1024), 32)
    monkeypatch.setattr(merging, "AT_ONCE", 200)
    parts = merge(points[0], torch.ones(1024), 32)
    errors = [float((points[0] - book[nearest(points, book[None])[0]]).square().sum()) for book in (whole, parts)]
    assert len(parts) == 32 and not torch.equal(whole, parts) and errors[1] < 1.1 * errors[0]


def test_product_at_one_bit_spends_less_on_books_unless_told_otherwise():
    assert ProductSpec(1).max_codebook_bits == 0.125 and ProductSpec(2).max_codebook_bits == 0.25
    for spec in (ProductSpec(1), ProductSpec(1, 0.25), ProductSpec(3)):
        assert spec_from_json(spec_to_json(spec)) == spec
