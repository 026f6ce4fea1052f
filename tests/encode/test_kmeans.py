"""K-means and Lloyd-Max against brute force."""
import itertools

import numpy as np
import pytest
import torch
from vqpack.vq_core.encode import kmeans
from vqpack.vq_core.encode.lloyd_max import lloyd_max


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scalar_error(values, weights, levels):
    return float((weights * np.abs(values[:, None] - levels[None]).min(1) ** 2).sum())


def best_split(values, weights, levels):
    """Exhaustive: an optimal scalar codebook cuts the sorted values into runs."""
    order = np.argsort(values)
    x, w = values[order], weights[order]
    best = np.inf
    for cuts in itertools.combinations(range(1, len(x)), levels - 1):
        edges = (0, *cuts, len(x))
        runs = [(x[a:b], w[a:b]) for a, b in zip(edges, edges[1:])]
        best = min(best, sum(float((q * (v - np.average(v, weights=q)) ** 2).sum()) for v, q in runs))
    return best


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("levels", [2, 3, 4])
def test_lloyd_max_equals_exhaustive_search(levels, seed):
    rng = np.random.default_rng(seed)
    values, weights = rng.standard_cauchy(11).astype(np.float32), rng.uniform(0.1, 3, 11)
    found = lloyd_max(values, weights, levels)
    assert (np.diff(found) >= 0).all() and len(found) == levels
    values = values.astype(float)
    assert scalar_error(values, weights, found) <= best_split(values, weights, levels) * 1.0011  # 0.1 %: zero level


def test_lloyd_max_returns_few_distinct_values_unchanged():
    values = np.array([3.0, -1.0, 3.0, 0.5, -1.0], dtype=np.float32)
    assert lloyd_max(values, None, 4).tolist() == [-1.0, 0.5, 3.0, 3.0]


def test_lloyd_max_finds_separate_clusters():
    rng = np.random.default_rng(0)
    centers = np.array([-40, -39, 0, 0.7, 5, 90, 91, 1000.0])
    values = (centers[:, None] + rng.normal(0, 0.01, (8, 2000))).ravel().astype(np.float32)
    assert np.abs(lloyd_max(values, None, 8) - centers).max() < 0.01


def test_lloyd_max_ignores_weightless_values():
    values = np.array([1, 2, 3, 50, 60], dtype=np.float32)
    assert lloyd_max(values, np.array([1, 1, 1, 0, 0.0]), 2).max() < 4


def test_pruned_weights_get_an_exact_zero_level():
    values = np.random.default_rng(1).normal(size=20000).astype(np.float32)
    values[::2] = 0
    assert 0.0 in lloyd_max(values, None, 8)


@pytest.mark.parametrize("batch, n, dim, size", [(1, 501, 8, 37), (3, 77, 2, 5), (2, 1, 3, 4)])
def test_nearest_equals_brute_force(batch, n, dim, size):
    points, centers = gaussian(batch, n, dim), gaussian(batch, size, dim, seed=1)
    distance = (points[:, :, None] - centers[:, None]).double().square().sum(-1)
    assert torch.equal(kmeans.nearest(points, centers), distance.argmin(-1))


def test_chunks_do_not_change_the_nearest(monkeypatch):
    points, centers = gaussian(3, 500, 4), gaussian(3, 16, 4, seed=1)
    whole = kmeans.nearest(points, centers)
    monkeypatch.setattr(kmeans, "SCORE_BUDGET", 16 * 7)
    assert torch.equal(kmeans.nearest(points, centers), whole)


def test_spread_sample_is_distinct_even_and_bounded():
    assert kmeans.spread_sample(5, 9).tolist() == [0, 1, 2, 3, 4]
    for count in (1000, 1280 * 160, 7919):
        chosen = kmeans.spread_sample(count, 500)
        assert len(chosen.unique()) == 500 and int(chosen.max()) < count
        per_tenth = torch.histc(chosen.float(), 10, 0, count)
        assert float(per_tenth.min()) >= 45
    assert len((kmeans.spread_sample(1280 * 160, 2**14) % 160).unique()) == 160


def test_kmeans_recovers_distinct_points_exactly():
    book = gaussian(2, 20, 3)
    points = book[:, torch.arange(600) % 20]
    centers = kmeans.fit(points, torch.ones(2, 600), 20, 5)
    coded = centers.gather(1, kmeans.nearest(points, centers)[..., None].expand(-1, -1, 3))
    assert float((coded - points).abs().max()) < 1e-6


def test_lloyd_iterations_never_lose():
    points, weights = gaussian(2, 900, 4), torch.rand(2, 900, generator=torch.Generator().manual_seed(2))
    centers, errors = kmeans.seed_centers(points, weights, 30, 0), []
    for _ in range(8):
        codes = kmeans.nearest(points, centers)
        coded = centers.gather(1, codes[..., None].expand(-1, -1, 4))
        errors.append(float((weights[..., None] * (points - coded).square()).sum()))
        centers = kmeans.update(points, weights, codes, centers)
    assert all(b <= a * (1 + 1e-5) for a, b in zip(errors, errors[1:])) and errors[-1] < 0.9 * errors[0]


def test_empty_clusters_move_to_the_worst_points():
    points = torch.tensor([[[0.0], [0.1], [10.0], [20.0]]])
    centers = kmeans.update(points, torch.ones(1, 4), torch.zeros(1, 4, dtype=torch.int64),
                            torch.tensor([[[0.0], [50.0]]]))
    assert centers[0, 1, 0] == 20.0


def test_weightless_points_do_not_pull():
    points, weights = torch.tensor([[[0.0], [1.0], [100.0]]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert float(kmeans.fit(points, weights, 1, 3)[0, 0, 0]) == pytest.approx(0.5)
