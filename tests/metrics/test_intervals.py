"""Bootstrap intervals and the kernel distance: known answers, coverage, pairs, exactness and refusals."""
from __future__ import annotations

import itertools
import math

import pytest
import torch
from vqpack.vq_core.errors import UnsupportedError
from vqpack.vq_core.metrics import (
    MIN_FEATURES,
    Interval,
    bootstrap,
    kernel_bootstrap,
    kernel_distance,
    paired_bootstrap,
)

INF, NAN = math.inf, math.nan


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_interval_is_that_of_all_resamples(statistic):
    """Three values have 27 equally likely resamples: the 80 % interval leaves 10 % of them outside on each side."""
    values, measure = [0.0, 1.0, 5.0], {"mean": lambda x: sum(x) / 3, "median": lambda x: sorted(x)[1]}[statistic]
    every = sorted(measure(resample) for resample in itertools.product(values, repeat=3))
    found = bootstrap(values, statistic, confidence=0.8, resamples=20_000)
    assert (found.low, found.value, found.high) == pytest.approx((every[2], measure(values), every[-3]))
    assert found.count == 3


def test_interval_of_a_mean_is_the_normal_one_for_many_values():
    values = 3 + 2 * normal(400)
    found = bootstrap(values)
    half = 1.96 * float(values.std(correction=0)) / 20
    assert found.value == pytest.approx(float(values.mean()))
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)


def test_interval_holds_the_truth_as_often_as_it_says():
    """95 % intervals of means of 30 normal values, 300 times; measured 93.9 % of 1500 (5: 83, 10: 91, 64: 94 %)."""
    hits = 0
    for trial in range(300):
        found = bootstrap(normal(30, seed=trial), resamples=500, seed=trial)
        hits += found.low <= 0 <= found.high
    assert 0.90 <= hits / 300 <= 0.98


def test_median_of_an_even_number_is_between_the_middle_two():
    assert bootstrap([1.0, 2.0, 10.0, 100.0], "median").value == 6.0


def test_same_seed_same_interval_and_order_of_prompts_moves_only_noise():
    values = normal(50)
    assert bootstrap(values, seed=1) == bootstrap(values.tolist(), seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)
    other = bootstrap(values.flip(0), seed=1)
    assert other.low == pytest.approx(bootstrap(values, seed=1).low, abs=0.02)
    scaled = bootstrap(-3 * values + 1, seed=1)
    assert scaled.low == pytest.approx(1 - 3 * bootstrap(values, seed=1).high)


def test_exact_outputs_have_an_infinite_mean_without_nan():
    assert bootstrap([INF] * 5) == Interval(INF, INF, INF, 5)
    found = bootstrap([20.0, 30.0, 25.0, INF, 28.0], "median")
    assert found.low >= 20 and found.value == 28 and found.high == INF
    broken = bootstrap([20.0, NAN, 30.0])
    assert math.isnan(broken.low) and math.isnan(broken.value) and math.isnan(broken.high)


def test_one_prompt_says_nothing_of_the_spread():
    assert bootstrap([3.0]) == Interval(-INF, 3.0, INF, 1)
    assert not bootstrap([3.0]).excludes_zero


def test_pairs_are_compared_prompt_by_prompt():
    """Prompts differ by 10 dB, methods by 1: only pairing sees it."""
    hard = 10 * normal(24)
    better, worse = hard + 1 + 0.2 * normal(24, seed=1), hard
    found = paired_bootstrap(better, worse)
    assert found.excludes_zero and found.low <= 1 <= found.high
    assert bootstrap(better).low < bootstrap(worse).high
    mirrored = paired_bootstrap(worse, better)
    assert mirrored.value == -found.value and mirrored.high < 0


def test_two_exact_models_do_not_differ():
    assert paired_bootstrap([INF, INF, 3.0], [INF, INF, 3.0]) == Interval(0.0, 0.0, 0.0, 3)


def test_bad_values_are_refused():
    with pytest.raises(UnsupportedError, match=r"one value a prompt, got a tensor of shape \[0\]"):
        bootstrap([])
    with pytest.raises(UnsupportedError, match=r"shape \[3, 2\]: average the seeds"):
        bootstrap(torch.zeros(3, 2))
    with pytest.raises(UnsupportedError, match="'mean' or 'median', got 'mode'"):
        bootstrap([1.0], "mode")
    with pytest.raises(UnsupportedError, match=r"same prompts on both sides, got \[3\] and \[2\]"):
        paired_bootstrap([1, 2, 3], [1, 2])


def distance_by_definition(a: torch.Tensor, b: torch.Tensor, pairs: bool) -> float:
    """Gretton et al. 2012, equation 3 (any sizes) or 4 (pairs), with KID's kernel, in plain Python."""
    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y)) / len(x) + 1)**3

    a, b = a.tolist(), b.tolist()
    within = sum(sum(kernel(x, y) for x, y in itertools.permutations(side, 2)) / (len(side) * (len(side) - 1))
                 for side in (a, b))
    across = [kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(b) if not pairs or i != j]
    return within - 2 * sum(across) / len(across)


@pytest.mark.parametrize("count", [MIN_FEATURES, MIN_FEATURES + 5])
def test_kernel_distance_is_its_definition(count):
    a, b = normal(MIN_FEATURES, 3), 0.5 + normal(count, 3, seed=1)
    wanted = distance_by_definition(a, b, pairs=count == MIN_FEATURES)
    assert kernel_distance(a, b) == pytest.approx(wanted, rel=1e-10)
    assert kernel_distance(b, a) == pytest.approx(wanted, rel=1e-10)


def test_distance_of_single_points_by_hand():
    """All of a at 0, all of b at 1, width 1: k is 1, 1 and 8, so the distance is 1 + 8 - 2."""
    a, b = torch.zeros(MIN_FEATURES, 1), torch.ones(MIN_FEATURES, 1)
    assert kernel_distance(a, b) == 7.0 == kernel_distance(a, torch.ones(MIN_FEATURES + 1, 1))


def test_distance_to_itself_is_exactly_zero():
    a = normal(MIN_FEATURES, 16).float()
    assert kernel_distance(a, a.clone()) == 0.0
    assert kernel_bootstrap(a, a.clone(), resamples=500) == Interval(0.0, 0.0, 0.0, MIN_FEATURES)


def test_it_is_unbiased():
    """Equal distributions average to zero over 100 draws; the biased estimator would be 0.1 too high."""
    values = [kernel_distance(normal(MIN_FEATURES, 8, seed=2 * i), normal(MIN_FEATURES, 8, seed=2 * i + 1))
              for i in range(100)]
    found = bootstrap(values, resamples=2000)
    assert found.low <= 0 <= found.high and found.high - found.low < 0.02


def test_interval_of_the_distance_holds_what_many_prompts_say():
    """Student's features = teacher's plus a shift: the truth from 1500 pairs lies in intervals of 200."""
    many = normal(1500, 8)
    truth, hits = kernel_distance(many, many + 0.4), 0
    for trial in range(12):
        some = normal(200, 8, seed=100 + trial)
        found = kernel_bootstrap(some, some + 0.4, resamples=500, seed=trial)
        assert found.low < found.value < found.high and found.excludes_zero
        hits += found.low <= truth <= found.high
    assert hits >= 9


def test_order_of_pairs_does_not_matter():
    a, b = normal(MIN_FEATURES, 4), normal(MIN_FEATURES, 4, seed=1)
    order = torch.randperm(MIN_FEATURES, generator=torch.Generator().manual_seed(3))
    assert kernel_distance(a[order], b[order]) == pytest.approx(kernel_distance(a, b), rel=1e-10)
    assert kernel_bootstrap(a, b, resamples=2500, seed=7) == kernel_bootstrap(a, b, resamples=2500, seed=7)


def test_small_sets_are_refused_with_the_reason():
    a, b = normal(MIN_FEATURES, 4), normal(MIN_FEATURES - 1, 4)
    for first, second in ((a, b), (b, a)):
        with pytest.raises(UnsupportedError, match=f"at least {MIN_FEATURES} samples .* noise ") as caught:
            kernel_distance(first, second)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnsupportedError, match="pairs of the same prompts"):
        kernel_bootstrap(a, normal(MIN_FEATURES + 1, 4))
    with pytest.raises(UnsupportedError, match="one width"):
        kernel_distance(a, normal(MIN_FEATURES, 5))
