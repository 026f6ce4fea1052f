"""The knapsack: against brute force, at full size, and what it refuses."""
from __future__ import annotations

import itertools
import random
import time

import pytest
from vqpack.vq_core.errors import PlanError
from vqpack.vq_core.planning.solve import solve

RATES = (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 16)
SHAPES = ((1280, 1280), (1280, 5120), (10240, 1280), (640, 640), (1280, 2048), (320, 2880), (1280, 11520))


def instance(seed: int):
    """Up to 7 layers of up to 5 options, costs over eight decades, and a budget that can be met."""
    rng = random.Random(seed)
    costs = [[rng.choice([rng.random(), 10 ** rng.uniform(-6, 2), 0.0]) for _ in range(rng.randint(1, 5))]
             for _ in range(rng.randint(1, 7))]
    sizes = [[rng.randint(1, 40) for _ in row] for row in costs]
    return costs, sizes, rng.randint(sum(map(min, sizes)), sum(map(max, sizes)))


def brute_force(costs, sizes, budget: int) -> float:
    return min(sum(row[p] for row, p in zip(costs, picks, strict=True))
               for picks in itertools.product(*(range(len(row)) for row in costs))
               if sum(row[p] for row, p in zip(sizes, picks, strict=True)) <= budget)


def test_equals_brute_force():
    for seed in range(150):
        costs, sizes, budget = instance(seed)
        found = solve(costs, sizes, budget)
        assert found.nbytes == sum(row[p] for row, p in zip(sizes, found.picks, strict=True)) <= budget
        assert found.cost == pytest.approx(brute_force(costs, sizes, budget), rel=1e-12, abs=1e-15), seed
        assert found.gap <= 1e-8


def full_size(seed: int):
    rng = random.Random(seed)
    costs, sizes = [], []
    for _ in range(800):
        (rows, cols), weight = rng.choice(SHAPES), 10 ** rng.uniform(-2, 2)
        costs.append([weight * 4.0 ** -rate * (1 + 0.3 * rng.random()) if rate < 16 else 0.0 for rate in RATES])
        sizes.append([int(rows * cols * rate / 8) + 2 * rows + 256 for rate in RATES])
    return costs, sizes


def test_full_size_takes_seconds_and_is_proven():
    costs, sizes = full_size(0)
    budget, started = sum(row[2] for row in sizes), time.process_time()
    found = solve(costs, sizes, budget)
    assert time.process_time() - started < 30
    assert 0.9999 * budget < found.nbytes <= budget and found.gap < 1e-4
    assert found.cost < sum(row[2] for row in costs)
    assert solve(costs, sizes, budget) == found


def test_a_small_front_says_how_far_it_can_be_off():
    costs, sizes = full_size(1)
    budget = sum(row[2] for row in sizes) + 12345
    best, rough = solve(costs, sizes, budget), solve(costs, sizes, budget, most_states=2)
    assert rough.nbytes <= budget and rough.bound <= best.cost <= rough.cost and rough.gap < 0.01


def test_ends_of_the_range():
    costs, sizes = [[3.0, 1.0], [5.0, 2.0]], [[1, 2], [1, 3]]
    assert solve(costs, sizes, 2).picks == (0, 0)
    assert solve(costs, sizes, 100).picks == (1, 1)
    with pytest.raises(PlanError, match="at least 2 bytes, the budget is 1"):
        solve(costs, sizes, 1)
