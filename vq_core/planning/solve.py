"""The best choice of one option a layer under a budget of bytes: a multiple-choice knapsack, solved exactly or bounded.

A price lambda a byte splits the problem: each layer takes the option of least cost + lambda * bytes (Everett 1963).
At the best lambda this gives a lower bound L and, spent greedily, a choice that is nearly best. What an option costs
more than its layer's best at this price is its regret; a choice whose regrets sum to more than (known choice - L)
cannot be better (Pisinger 1995, "A minimal algorithm for the multiple-choice knapsack problem"), which leaves few
options for the exact search over Pareto fronts of (bytes, cost).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import PlanError

# States of a front kept at most. 800 layers x 11 options of SDXL's sizes: docs/plan.md.
MOST_STATES = 20_000
FIRST_STATES = 500                         # of a first, quick search that finds a good choice
ROUNDING = 1e-9                            # relative; sums of 800 floats differ by less


@dataclass(frozen=True)
class Solution:
    """picks: an option for each layer. bound: no choice within the budget costs less (= cost where proven best)."""

    picks: tuple[int, ...]
    cost: float
    nbytes: int
    bound: float

    @property
    def gap(self) -> float:
        """How far above the best it can be at most, as a share of its cost."""
        return (self.cost - self.bound) / self.cost if self.cost > 0 else 0.0


def solve(costs: Sequence[Sequence[float]], nbytes: Sequence[Sequence[int]], budget: int,
          most_states: int = MOST_STATES) -> Solution:
    """Least sum of costs with a sum of bytes within the budget; costs and nbytes: [layer][option].

    The same input gives the same picks. PlanError where even the smallest options do not fit.
    """
    cost = [np.asarray(row, np.float64) for row in costs]
    size = [np.asarray(row, np.int64) for row in nbytes]
    least = sum(int(row.min()) for row in size)
    if least > budget:
        raise PlanError(f"the layers take at least {least} bytes, the budget is {budget}")
    picks, price = _greedy(cost, size, budget)
    best = _total(cost, size, picks)
    if price == 0:
        return Solution(tuple(picks), *best, best[0])
    bound = best[0]
    for states in dict.fromkeys((min(FIRST_STATES, most_states), most_states)):
        found, bound = _search(cost, size, budget, price, best[0], states)
        if found is not None and _total(cost, size, found)[0] < best[0]:
            picks, best = found, _total(cost, size, found)
        bound = min(bound, best[0])
        if bound >= best[0] * (1 - ROUNDING):
            break
    return Solution(tuple(int(p) for p in picks), *best, bound)


def _total(cost, size, picks) -> tuple[float, int]:
    return (float(sum(row[pick] for row, pick in zip(cost, picks, strict=True))),
            int(sum(row[pick] for row, pick in zip(size, picks, strict=True))))


def _greedy(cost, size, budget: int) -> tuple[list[int], float]:
    """-> (picks, price a byte): steps along each layer's lower hull, the best cost a byte first, as long as they fit.

    The price is that of the first step that does not fit; 0 where all fit.
    """
    hulls = [_hull(c, s) for c, s in zip(cost, size, strict=True)]
    picks = [hull[0] for hull in hulls]
    left = budget - sum(int(s[p]) for s, p in zip(size, picks, strict=True))
    steps = []
    for layer, hull in enumerate(hulls):
        for index, (old, new) in enumerate(zip(hull, hull[1:], strict=False)):
            gain, extra = cost[layer][old] - cost[layer][new], int(size[layer][new] - size[layer][old])
            steps.append((-gain / extra, layer, index, old, new, extra))
    price = 0.0
    for slope, layer, _, old, new, extra in sorted(steps):
        if extra <= left and picks[layer] == old:
            picks[layer], left = new, left - extra
        elif not price:
            price = -slope
    return picks, price


def _hull(cost: np.ndarray, size: np.ndarray) -> list[int]:
    """Options on the lower convex hull of (bytes, cost), from the fewest bytes to the least cost."""
    hull: list[int] = []
    for option in sorted(range(len(cost)), key=lambda i: (size[i], cost[i], i)):
        if hull and cost[option] >= cost[hull[-1]]:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], option, cost, size):
            hull.pop()
        hull.append(option)
    return hull


def _above(first: int, middle: int, last: int, cost: np.ndarray, size: np.ndarray) -> bool:
    """Whether `middle` lies on or above the line from first to last."""
    run, rise = int(size[middle] - size[first]), cost[middle] - cost[first]
    return rise * int(size[last] - size[first]) >= (cost[last] - cost[first]) * run


def _search(cost, size, budget: int, price: float, known: float, most_states: int) -> tuple[list[int] | None, float]:
    """-> (picks no worse than `known`, or None; a lower bound of every choice), by fronts of (bytes, cost)."""
    priced = [c + price * s for c, s in zip(cost, size, strict=True)]
    lower = sum(float(row.min()) for row in priced) - price * budget                # L
    room = known * (1 + ROUNDING) - lower
    kept = [np.flatnonzero(row - row.min() <= room) for row in priced]
    order = sorted(range(len(kept)), key=lambda i: (-int(np.ptp(size[i][kept[i]])), i))
    fewest = np.cumsum([0] + [int(size[i][kept[i]].min()) for i in reversed(order)])[::-1]
    most = np.cumsum([0] + [int(size[i][kept[i]].max()) for i in reversed(order)])[::-1]
    used, regret = np.zeros(1, np.int64), np.zeros(1)                               # [states]
    trail, bound = [], np.inf
    for stage, layer in enumerate(order, 1):
        options = kept[layer]
        extra = priced[layer][options] - priced[layer].min()
        total = (used[:, None] + size[layer][options]).reshape(-1)
        more = (regret[:, None] + extra).reshape(-1)
        idle = price * np.maximum(0, budget - total - most[stage])                  # bytes nobody can use any more
        alive = np.flatnonzero((total + fewest[stage] <= budget) & (more + idle <= room))
        if not len(alive):
            return None, min(bound, known)
        alive = _front(alive, total, more - price * total)
        if len(alive) > most_states:
            ranked = alive[np.argsort((more + idle)[alive], kind="stable")]
            bound = min(bound, lower + float((more + idle)[ranked[most_states]]))
            alive = ranked[:most_states]
        trail.append((alive // len(options), options[alive % len(options)]))
        used, regret = total[alive], more[alive]
    state = int(np.lexsort((used, regret - price * used))[0])
    picks = [0] * len(order)
    for layer, (parent, option) in zip(reversed(order), reversed(trail), strict=True):
        picks[layer], state = int(option[state]), int(parent[state])
    return picks, min(bound, _total(cost, size, picks)[0])


def _front(alive: np.ndarray, total: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Those no other has at most their bytes and their cost."""
    ordered = alive[np.lexsort((cost[alive], total[alive]))]
    best = np.minimum.accumulate(cost[ordered])
    return ordered[np.r_[True, cost[ordered][1:] < best[:-1]]]
