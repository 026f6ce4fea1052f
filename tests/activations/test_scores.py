"""T13: attention scores in few bits, uniform by row against the logarithm; the start token; who shares a batch."""
from __future__ import annotations

import math

import pytest
import torch
from vqpack.vq_core.activations.scores import quantize_scores
from vqpack.vq_core.activations.specs import ScoreSpec

ROW_UNIFORM = {8: 0.00006, 6: 0.0009, 4: 0.010}            # methods' own measured relative squared error
LOG2_FLOOR = 0.042                         # E (2^u - 1)^2 for u uniform in +-1/2: .0417


def prompt_scores(n=1, queries=500, seed=0):
    """Softmax over 77 tokens of which the first takes most, as a start token does -> [n, 2, queries, 77]"""
    g = torch.Generator().manual_seed(seed)
    logits = 2.6 * torch.randn(n, 2, queries, 77, generator=g)
    logits[..., 0] += 4
    return logits.softmax(-1)


def relative(got, wanted):
    """Squared error over square of what the prompt's tokens contribute."""
    return float((got - wanted)[..., 1:].square().sum() / wanted[..., 1:].square().sum())


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_uniform_rows_lose_less_than_the_logarithms_floor(bits):
    scores = prompt_scores()
    row = relative(quantize_scores(scores, ScoreSpec("row_uniform", bits), True), scores)
    log2 = relative(quantize_scores(scores, ScoreSpec("log2", bits), True), scores)
    assert row <= ROW_UNIFORM[bits]
    assert log2 == pytest.approx(LOG2_FLOOR, rel=0.1)
    assert row < log2 / 4


def test_a_finer_logarithm_loses_less():
    scores = prompt_scores()
    errors = [relative(quantize_scores(scores, ScoreSpec("log_r", 8, log_steps=r), True), scores) for r in (1, 2, 4)]
    assert errors == sorted(errors, reverse=True) and errors[2] < errors[0] / 10
    assert errors[0] == relative(quantize_scores(scores, ScoreSpec("log2", 8), True), scores)


@pytest.mark.parametrize("method", ["row_uniform", "log2", "log_r"])
def test_start_token_is_exact_in_cross_attention_alone(method):
    scores = prompt_scores(queries=33)
    kept = quantize_scores(scores, ScoreSpec(method, 4), True)
    assert torch.equal(kept[..., 0], scores[..., 0]) and not torch.equal(kept[..., 1:], scores[..., 1:])
    for spec, cross in ((ScoreSpec(method, 4), False), (ScoreSpec(method, 4, keep_start=False), True)):
        assert not torch.equal(quantize_scores(scores, spec, cross)[..., 0], scores[..., 0])


@pytest.mark.parametrize("method", ["row_uniform", "log2", "log_r"])
def test_samples_do_not_depend_on_their_company(method):
    scores = prompt_scores(n=4, queries=9)
    scores[2] *= 0.01                      # a sample whose largest score is small
    order = torch.tensor([2, 0, 3, 1])
    for spec in (ScoreSpec(method, 6), ScoreSpec(method, 6, scale_of="batch")):
        whole = quantize_scores(scores, spec, True)
        assert torch.equal(quantize_scores(scores[order], spec, True), whole[order])
        alone = torch.cat([quantize_scores(one[None], spec, True) for one in scores])
        depends = method != "row_uniform" and spec.scale_of == "batch"               # the paper's global maximum
        assert torch.equal(alone, whole) != depends


def test_logarithm_is_what_one_counts():
    row = [0.5, 0.3, 0.11, 0.05, 0.03, 0.0099, 0.0001, 0.0]
    got = quantize_scores(torch.tensor(row).view(1, 1, 1, -1), ScoreSpec("log2", 3), False).flatten().tolist()
    codes = [7 if not v else max(0, min(7, round(-math.log2(v / 0.5)))) for v in row]
    assert got == pytest.approx([0.5 * 2.0**-code for code in codes])
    assert codes == [0, 1, 2, 3, 4, 6, 7, 7]


def test_nothing_to_look_at_stays():
    only_start = torch.ones(1, 1, 3, 1)
    for method in ("row_uniform", "log2", "log_r", "keep"):
        assert torch.equal(quantize_scores(only_start, ScoreSpec(method), True), only_start)
    start = torch.zeros(1, 1, 3, 5)
    start[..., 0] = 1
    for method in ("row_uniform", "log2", "log_r"):
        assert torch.equal(quantize_scores(start, ScoreSpec(method), True), start)
