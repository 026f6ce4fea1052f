"""Error feedback: against a plain GPTQ, exact linear algebra, choice of damping, every encoder that uses it."""
from __future__ import annotations

import pytest
import torch
from vqpack.benchmarks.correlated import gram, inputs, weights
from vqpack.kernels import viterbi
from vqpack.kernels.reference import decode_part
from vqpack.vq_core.encode import encode_weight, feedback
from vqpack.vq_core.encode.feedback import (
    DAMPINGS,
    add_damping,
    choose_damping,
    code_columns,
    expected_error,
    factor,
    held_out_error,
    make_feedback,
)
from vqpack.vq_core.encode.trellis import encode_trellis
from vqpack.vq_core.errors import PlanError
from vqpack.vq_core.gram import Gram, output_error
from vqpack.vq_core.spec import TrellisSpec, make_spec


def relative(lost, matrix, blocks):
    return float(output_error(lost, blocks).sum() / output_error(matrix, blocks).sum())


def rounded(step):
    return lambda column, wanted, following: (wanted / step).round() * step


def plain_gptq(matrix, damped, step):
    """As the paper writes it: inverse, its Cholesky factor, one column after the other."""
    w, upper = matrix.double().clone(), torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    for j in range(w.shape[1]):
        error = (w[:, j] - (w[:, j] / step).round() * step) / upper[j, j]
        w[:, j] = (w[:, j] / step).round() * step
        w[:, j + 1:] -= error[:, None] * upper[j, j + 1:]
    return w


def test_the_same_codes_as_a_plain_gptq(monkeypatch):
    matrix, g = weights(7, 37), Gram(gram(inputs(37, 200, 0)), 200)
    found = make_feedback(g, damping=0.01)
    for lazy in (1, 5, 128):
        monkeypatch.setattr(feedback, "LAZY", lazy)
        wanted = plain_gptq(matrix, add_damping(g.blocks.double(), 0.01)[0], 0.5)
        assert torch.equal(code_columns(matrix, found, rounded(0.5)).double(), wanted)
    assert not torch.equal(wanted.float(), (matrix / 0.5).round() * 0.5)


def test_factor_and_expected_error_are_exact():
    damped = add_damping(gram(inputs(24, 100, 0)).double().repeat(2, 1, 1), 0.1)
    forward, pivots = factor(damped)
    half = forward + torch.eye(24)
    assert torch.allclose(half @ torch.diag_embed(pivots) @ half.transpose(1, 2), damped)
    assert torch.equal(forward, forward.triu(1))
    inverse = torch.linalg.inv(half)
    wanted = sum(torch.trace(t @ g @ t.t()) for t, g in zip(inverse, damped, strict=True))
    assert torch.allclose(expected_error(forward, damped), wanted) and torch.allclose(wanted, pivots.sum())
    other = gram(inputs(24, 90, 1)).double().repeat(2, 1, 1)
    assert held_out_error(forward, torch.linalg.cholesky(other)) == pytest.approx(float(expected_error(forward, other)))


def test_the_following_column_is_the_one_that_comes(monkeypatch):
    """What a coder is shown in advance differs from what comes by the last correction only."""
    monkeypatch.setattr(feedback, "LAZY", 4)
    matrix, g = weights(3, 12), make_feedback(Gram(gram(inputs(12, 50, 0)), 50), damping=0.1)
    seen, shown, decoded = {}, {}, {}

    def code(column, wanted, following):
        seen[column], shown[column + 1] = wanted.clone(), None if following is None else following.clone()
        decoded[column] = wanted.round()
        return decoded[column]

    code_columns(matrix, g, code)
    for column in range(1, 12):
        last = (matrix[:, column - 1] - decoded[column - 1]) * g.forward[0, column - 1, column]
        assert torch.allclose(shown[column] + last, seen[column], atol=1e-5)
    assert shown[12] is None


def test_blocks_are_independent():
    g = gram(inputs(16, 80, 0))
    both = Gram(torch.cat([g, 2 * g]), 80)
    matrix = weights(5, 32)
    decoded = code_columns(matrix, make_feedback(both, damping=0.01), rounded(0.5))
    alone = [code_columns(part.contiguous(), make_feedback(Gram(g, 80), damping=0.01), rounded(0.5))
             for part in matrix.split(16, 1)]
    assert torch.equal(decoded, torch.cat(alone, 1))


@pytest.mark.parametrize("samples, least, most", [(20, 0.3, 1e6), (4000, 0.003, 0.1)])
def test_damping_follows_the_number_of_samples(samples, least, most):
    a, b = gram(inputs(64, samples, 0)), gram(inputs(64, samples, 1))
    g = Gram(a, samples, b, samples)
    errors = [float(expected_error(factor(add_damping(a.double(), d))[0], b.double())) for d in DAMPINGS]
    assert least <= choose_damping(g) <= most and errors[DAMPINGS.index(choose_damping(g))] == min(errors)


@pytest.mark.parametrize("samples", [6, 16, 32, 64])
def test_few_samples_are_never_worse_than_none(samples):
    """64 columns; judged on inputs that neither the gram nor the choice of damping has seen."""
    matrix, spec, truth = weights(96, 64), TrellisSpec(bits=2, window=8), gram(inputs(64, 4096, 9))
    g = Gram(gram(inputs(64, samples, 0)), samples, gram(inputs(64, samples, 1)), samples)
    free, calibrated = (decode_part(encode_trellis(matrix, spec, channels=64, gram=some)) for some in (None, g))
    assert relative(matrix - calibrated, matrix, truth) < 1.02 * relative(matrix - free, matrix, truth)


@pytest.mark.parametrize("kind, bits, most", [("trellis", 2, 0.45), ("trellis", 3, 0.45), ("palette", 3, 0.65),
                                              ("uniform", 3, 0.65)])
def test_feedback_lowers_the_error_of_outputs(kind, bits, most):
    matrix = weights(160, 128)
    g = Gram(gram(inputs(128, 2048, 0)), 2048, gram(inputs(128, 2048, 1)), 2048)
    truth, spec = gram(inputs(128, 8192, 9)), make_spec(kind, bits)
    free, calibrated = encode_weight(matrix, spec), encode_weight(matrix, spec, gram=g)
    errors = [relative(matrix - found.weight.decode(), matrix, truth) for found in (free, calibrated)]
    assert errors[1] < most * errors[0]
    assert calibrated.weight.bits == free.weight.bits and calibrated.relative_error > free.relative_error
    assert calibrated.output_error == pytest.approx(relative(matrix - calibrated.weight.decode(), matrix,
                                                             g.all_inputs().float()), rel=1e-4)
    assert errors[1] == pytest.approx(calibrated.output_error, rel=0.15) and free.output_error is None


@pytest.mark.parametrize("kind", ["trellis", "palette", "uniform"])
@pytest.mark.parametrize("shape, splits", [((5, 7), ()), ((33, 6, 3, 3), (4, 2)), ((40, 32, 3, 3), ()), ((1, 1), ())])
def test_odd_shapes_splits_and_dead_rows(kind, shape, splits):
    weight = weights(shape[0], weight_cols(shape)).reshape(shape[0], *shape[2:], shape[1])
    weight = weight.permute(0, 3, 1, 2) if len(shape) == 4 else weight
    weight[0] = 0
    cols = weight_cols(shape)
    for blocks in (gram(inputs(cols, 300, 0)), torch.zeros(1, cols, cols), torch.ones(1, cols, cols)):
        coded = encode_weight(weight.contiguous(), make_spec(kind, 4), splits=splits, gram=Gram(blocks, 300))
        assert not coded.weight.decode()[0].any() and coded.relative_error < 0.05


def weight_cols(shape):
    return torch.Size(shape[1:]).numel()


def test_one_gram_a_tap_equals_a_whole_one_without_what_taps_share():
    taps = torch.stack([gram(inputs(16, 100, seed))[0] for seed in range(9)])
    taps /= taps.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]     # damping is a share of the mean
    weight = weights(96, 144).reshape(96, 3, 3, 16).permute(0, 3, 1, 2).contiguous()
    whole = Gram(torch.block_diag(*taps)[None], 9999)
    spec = TrellisSpec(bits=3, window=8, rotation=16)
    whole_error, tap_error, free = (encode_weight(weight, spec, gram=g).weight.decode() for g in
                                    (whole, Gram(taps, 9999), None))
    matrix = weight.permute(0, 2, 3, 1).reshape(96, -1)
    whole_error, tap_error, free = (relative((decoded - weight).permute(0, 2, 3, 1).reshape(96, -1), matrix,
                                             whole.blocks) for decoded in (whole_error, tap_error, free))
    assert tap_error == pytest.approx(whole_error, rel=0.02) and whole_error < 0.7 * free
    start = whole.split(4, 12, 16)
    assert torch.equal(start.blocks[0, :8, :8], taps[0, 4:12, 4:12]) and start.columns == 72
    assert torch.equal(Gram(taps, 100).split(4, 12, 16).blocks, taps[:, 4:12, 4:12])


def test_codes_do_not_depend_on_threads():
    matrix, g = weights(64, 96), Gram(gram(inputs(96, 300, 0)), 300, gram(inputs(96, 300, 1)), 300)
    threads, parts = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            parts.append(encode_trellis(matrix, TrellisSpec(bits=2, window=8), channels=96, gram=g))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(part.codes, parts[0].codes) and torch.equal(part.scales.row, parts[0].scales.row)
               for part in parts)


@pytest.mark.skipif(viterbi.report("cpu")["numba"] is not None, reason="numba is not installed")
@pytest.mark.parametrize("bits, window, rows, channels, taps", [(1, 8, 40, 150, 1), (2.5, 12, 33, 24, 2),
                                                                (4, 8, 5, 9, 3)])
def test_native_code_gives_the_codes_of_the_plain_way(bits, window, rows, channels, taps):
    """Chains of several columns, masked rows, the edges of lazy blocks and of the gram's."""
    matrix = weights(rows, channels * taps)
    matrix[::7] = 0
    g = torch.stack([gram(inputs(channels, 300, seed))[0] for seed in range(taps)])
    spec = TrellisSpec(bits=bits, window=window)
    plain, native = (encode_trellis(matrix, spec, channels=channels, taps=taps, gram=Gram(g, 300), backend=backend)
                     for backend in ("torch", "numba"))
    assert plain.chain > 1 and torch.equal(plain.codes, native.codes)
    assert torch.equal(plain.scales.row, native.scales.row)


def test_grams_of_another_shape_are_refused():
    with pytest.raises(PlanError, match=r"\[blocks, size, size\]"):
        Gram(torch.zeros(3, 4), 1)
    with pytest.raises(PlanError, match="alike"):
        Gram(torch.zeros(1, 4, 4), 1, torch.zeros(2, 4, 4), 1)
