"""Verdicts on hand-made numbers, and the checks that the instrument makes of itself."""
from __future__ import annotations

import pytest
import torch


def test_our_curve_is_read_between_its_neighbors(bench):
    verdict = bench("quality_verdict")
    curve = [(4.0, torch.tensor([40.0, 20.0])), (2.0, torch.tensor([20.0, 12.0])), (3.0, torch.tensor([30.0, 18.0]))]
    assert verdict.read_curve(curve, 2.5).tolist() == [25.0, 15.0]
    assert verdict.read_curve(curve, 4.0).tolist() == [40.0, 20.0]
    assert verdict.read_curve(curve, 3.25).tolist() == [32.5, 18.5]
    for outside in (1.9, 4.1):
        with pytest.raises(ValueError, match="within 2.000 and 4.000"):
            verdict.read_curve(curve, outside)


def line(prompts: int = 20) -> list:
    """Our curve: 10 dB a bit, the prompts spread over 10 dB."""
    spread = torch.linspace(-5, 5, prompts)
    return [(rate, 10 * rate + spread) for rate in (2.0, 3.0, 4.0)]


@pytest.mark.parametrize("above, word", [(-3.0, "ahead"), (3.0, "behind"), (0.0, "undecided")])
def test_verdict_follows_the_paired_difference(bench, above, word):
    """The prompts spread over 10 dB, the pairs over 1: only a paired comparison decides."""
    wobble = torch.linspace(-0.5, 0.5, 20)[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    theirs = line()[1][1] + 5 + above + wobble                                       # at 3.5 bits ours has 35
    found = bench("quality_verdict").judge(theirs, 3.5, 1.0, line())
    assert (found.word, found.ours_bits, found.reason) == (word, 3.5, "")
    assert found.difference.low < -above < found.difference.high and found.difference.count == 20


def test_beyond_our_rates_nothing_is_prolonged(bench):
    judge = bench("quality_verdict").judge
    above = judge(torch.full((20,), 38.0), 5.0, 1.0, line())
    assert above.ours_bits == 4.0 and "1.00 bits fewer" in above.reason and abs(above.difference.value - 2) < 1e-5
    below = judge(torch.full((20,), 0.0), 1.9, 1.0, line())
    assert below.word == "no claim" and below.difference is None and "our lowest rate 2.00" in below.reason


def test_no_claim_without_most_weights_or_a_curve(bench):
    judge = bench("quality_verdict").judge
    assert judge(torch.zeros(20), 3.0, 0.94, line()).reason == "it codes 94 % of these weights"
    assert judge(torch.zeros(20), 3.0, 0.95, line()).word == "ahead"
    assert judge(torch.zeros(20), 3.0, 1.0, line()[:1]).word == "no claim"


def test_broken_student_is_far_behind_ours(bench):
    """NaN predictions are -inf dB and decide nothing else."""
    assert bench("quality_verdict").judge(torch.full((20,), -torch.inf), 3.0, 1.0, line()).word == "ahead"


def test_linears_alone_are_compared_with_linears_alone(bench):
    curve_of = bench("quality_report").curve_of
    assert curve_of({"share": 0.41, "linear_share": 1.0}) == ("ours-trellis-linears", 1.0)
    assert curve_of({"share": 0.99, "linear_share": 1.0}) == ("ours-trellis", 0.99)
    assert curve_of({"share": 0.2, "linear_share": 0.5}) == ("ours-trellis", 0.2)


def test_check_tells_a_wrong_scale(bench):
    """20 dB put in: white noise's own spread passes, half a decibel does not."""
    report = bench("quality_report")
    spread = report.WHITE_SPREAD * torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert report._recovered(spread, 1).word == "recovered"
    assert report._recovered(spread + 0.5, 1).word == "not recovered"
    assert report._averaged("noise_snr with_prompt 250-500",
                            {"timesteps": [900.0, 400.0, 250.0, 10.0], "noise_snr": []}) == 2


def test_bits_count_everything(bench):
    """One layer coded at 1 byte a weight, all else fp16."""
    students = bench("quality_students")
    layers, weights = students.layers()
    sizes = {layer.key: torch.Size(layer.shape).numel() for layer in layers}
    first = layers[0].key
    stored = {key: 2 * size for key, size in sizes.items()} | {first: sizes[first]}
    found = students.count(stored, {first})
    assert found["bits_layers"] == 8 and found["share"] == sizes[first] / sum(sizes.values())
    assert found["bits_unet"] == pytest.approx(16 - 8 * sizes[first] / weights)
    assert len(layers) == 117 and weights == 6_978_244
