"""Owns making a book smaller by merging its entries (DPQ, arXiv 2411.12306: the most used are kept)."""
from __future__ import annotations

import torch

from .kmeans import cluster_sums, nearest

CRITERIA = ("ward", "usage")


def merge(entries: torch.Tensor, counts: torch.Tensor, keep: int, criterion: str = "ward") -> torch.Tensor:
    """Entries float32 [n, dim] that `counts` [n] vectors use -> [keep, dim]; as they are where there are no more.

    usage: the most used stay, each moved to the weighted mean of itself and of the others that are nearest to it.
    ward: the pair that costs least squared error, n_i n_j / (n_i + n_j) times their squared distance, becomes its
    weighted mean, again and again (Ward 1963).
    """
    if len(entries) <= keep:
        return entries
    if criterion == "usage":
        return _usage(entries, counts, keep)
    return _ward(entries.double(), counts.double(), keep).to(entries.dtype)


def _usage(entries: torch.Tensor, counts: torch.Tensor, keep: int) -> torch.Tensor:
    kept = entries[counts.argsort(descending=True, stable=True)[:keep]]
    nearby = nearest(entries[None], kept[None])
    totals, mass = cluster_sums(entries[None], counts[None].to(entries.dtype), nearby, keep)
    return torch.where(mass[0, :, None] > 0, totals[0] / mass[0].clamp(min=1e-30)[:, None], kept)


def _ward(entries: torch.Tensor, counts: torch.Tensor, keep: int) -> torch.Tensor:
    entries, counts = entries.clone(), counts.clone()
    alive = torch.ones(len(entries), dtype=torch.bool, device=entries.device)
    cost = torch.stack([_costs(entries, counts, alive, i) for i in range(len(entries))])
    best, partner = cost.min(1)                                                     # [n]: of each entry
    for _ in range(len(entries) - keep):
        i = int(best.argmin())
        j = int(partner[i])
        total = counts[i] + counts[j]
        if total > 0:
            entries[i] = (entries[i] * counts[i] + entries[j] * counts[j]) / total
        counts[i], alive[j] = total, False
        best[j], cost[j], cost[:, j] = torch.inf, torch.inf, torch.inf
        cost[i] = _costs(entries, counts, alive, i)
        cost[:, i] = torch.where(alive, cost[i], torch.inf)
        stale = alive & ((partner == i) | (partner == j))
        stale[i] = True
        best[stale], partner[stale] = cost[stale].min(1)
        nearer = alive & (cost[:, i] < best)
        best[nearer], partner[nearer] = cost[nearer, i], i
    return entries[alive]


def _costs(entries, counts, alive, i):
    """What merging entry i with each other one costs, [n]; inf for itself and for those that are gone."""
    cost = counts * counts[i] / (counts + counts[i]).clamp(min=1e-300) * (entries - entries[i]).square().sum(1)
    cost[~alive], cost[i] = torch.inf, torch.inf
    return cost
