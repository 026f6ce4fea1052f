"""The best scalar codebook for given numbers (Lloyd 1957, Max 1960); exact where few distinct numbers occur."""
from __future__ import annotations

import numpy as np

ATOMS = 512                                # points of the exact search; 1024 gain < 0.02 % (2 to 6 bits)
EXACT_LEVELS = 64                          # above, cells of the density start are already closer than ATOMS could be
MAX_ITERATIONS = 400                       # never reached there: SETTLED ends the search first
SETTLED = 1e-7                             # relative gain of an iteration that ends the search
RESOLUTION = 18                            # bits; rows of one palette differ by float32 rounding after normalization
ZERO_COST = 1e-3                           # share of the error that an exact zero level may add


def lloyd_max(values: np.ndarray, weights: np.ndarray | None, levels: int) -> np.ndarray:
    """Ascending levels [levels], float64, that minimize sum of weights * (value - nearest level)^2.

    values: [n], n >= 1; weights: [n] or None. With at most `levels` distinct values these are returned, the last
    one repeated; with at most ATOMS the result is the global optimum (dynamic programming) before the last step:
    the level nearest zero moves onto zero where that adds less than ZERO_COST, as with pruned weights.
    """
    sums = _Sums(values, weights)
    distinct = sums.distinct()
    if len(distinct) <= levels:
        return _fill(distinct, levels)
    start = distinct
    if len(distinct) > ATOMS:
        start = sums.cell_means(_density_cells(sums.x, ATOMS))
    if len(start) <= ATOMS and levels <= EXACT_LEVELS or len(distinct) <= ATOMS:
        centers = _exact(sums, start, levels)
    else:
        centers = sums.cell_means(_density_cells(sums.x, levels))
    return _keep_zero(sums, _lloyd(sums, _fill(centers, levels)))


class _Sums:
    """Sorted values with running sums, so that any cell's mass, mean and error take two look-ups."""

    def __init__(self, values: np.ndarray, weights: np.ndarray | None):
        values = np.asarray(values, dtype=np.float32).ravel()
        weights = np.ones_like(values) if weights is None else np.asarray(weights).ravel()
        keep = weights > 0
        values, weights = (values, weights) if keep.all() else (values[keep], weights[keep])
        order = np.argsort(values)
        self.x = values[order].astype(np.float64)                                   # [n]
        w = weights[order].astype(np.float64)
        self.mass = _running(w)                                                     # [n + 1]
        self.first = _running(w * self.x)
        self.second = _running(w * self.x * self.x)

    def distinct(self) -> np.ndarray:
        """Distinct numbers; those on one point of a grid of 2**-RESOLUTION of the largest are one, at their mean."""
        grid = max(abs(self.x[0]), abs(self.x[-1])) * 2.0**-RESOLUTION or 1.0
        cell = np.round(self.x / grid)
        ends = np.nonzero(np.diff(cell) > 0)[0] + 1
        at = np.concatenate([[0], ends, [len(self.x)]])
        return np.diff(self.first[at]) / np.diff(self.mass[at])

    def cell_means(self, edges: np.ndarray) -> np.ndarray:
        """Means of the cells between ascending edges; cells without mass are left out."""
        at = np.concatenate([[0], np.searchsorted(self.x, edges), [len(self.x)]])
        mass, first = np.diff(self.mass[at]), np.diff(self.first[at])
        return first[mass > 0] / mass[mass > 0]

    def error(self, centers: np.ndarray) -> tuple[float, np.ndarray]:
        """-> (squared error, means of the cells of the ascending centers; an empty cell keeps its center)."""
        at = np.concatenate([[0], np.searchsorted(self.x, _middles(centers)), [len(self.x)]])
        mass, first, second = np.diff(self.mass[at]), np.diff(self.first[at]), np.diff(self.second[at])
        means = np.where(mass > 0, first / np.where(mass > 0, mass, 1.0), centers)
        return float((second - 2 * centers * first + centers**2 * mass).sum()), means


def _lloyd(sums: _Sums, centers: np.ndarray) -> np.ndarray:
    best = np.inf
    for _ in range(MAX_ITERATIONS):
        error, means = sums.error(centers)
        if not error < best * (1 - SETTLED):
            break
        best, centers = error, np.sort(means)
    return centers


def _keep_zero(sums: _Sums, centers: np.ndarray) -> np.ndarray:
    moved = centers.copy()
    moved[np.abs(centers).argmin()] = 0.0
    return moved if sums.error(moved)[0] <= sums.error(centers)[0] * (1 + ZERO_COST) else centers


def _exact(sums: _Sums, atoms: np.ndarray, levels: int) -> np.ndarray:
    """Best split of the atoms' cells into `levels` runs: O(levels * atoms^2) dynamic programming."""
    at = np.concatenate([[0], np.searchsorted(sums.x, _middles(atoms)), [len(sums.x)]])
    mass, first, second = sums.mass[at], sums.first[at], sums.second[at]            # [atoms + 1]
    m, f, s = (a[None, :] - a[:, None] for a in (mass, first, second))              # [atoms + 1, atoms + 1]
    cost = np.where(m > 0, s - f * f / np.where(m > 0, m, 1.0), np.inf)             # run i .. j
    best = cost[0].copy()
    cuts = np.zeros((levels, len(best)), dtype=np.int64)
    for k in range(1, levels):
        total = best[:, None] + cost
        cuts[k] = total.argmin(0)
        best = np.minimum(best, total[cuts[k], np.arange(len(best))])
    return _run_means(mass, first, cuts)


def _run_means(mass: np.ndarray, first: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    end, means = len(mass) - 1, []
    for k in range(len(cuts) - 1, -1, -1):
        begin = int(cuts[k, end])
        means.append((first[end] - first[begin]) / (mass[end] - mass[begin]))
        end = begin
        if end == 0:
            break
    return np.array(means[::-1])


def _density_cells(x: np.ndarray, cells: int) -> np.ndarray:
    """Inner edges of `cells` cells of equal density**(1/3) (Panter and Dite 1951), from 4096 quantiles."""
    edges = x[np.linspace(0, len(x) - 1, min(len(x), 4097)).astype(np.int64)]
    width = np.diff(edges)
    spread = np.concatenate([[0.0], np.cumsum(width ** (2 / 3))])                   # (mass / width)^(1/3) * width
    return np.interp(np.linspace(0, spread[-1], cells + 1)[1:-1], spread, edges)


def _fill(centers: np.ndarray, levels: int) -> np.ndarray:
    """Repeat the last center where cells were empty."""
    return np.concatenate([centers, np.full(levels - len(centers), centers[-1])])


def _middles(centers: np.ndarray) -> np.ndarray:
    return (centers[1:] + centers[:-1]) / 2


def _running(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(values)])
