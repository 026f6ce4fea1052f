"""Owns making a book smaller by merging its entries (DPQ, arXiv 2411.12306: the most used are kept)."""
from __future__ import annotations

import numpy as np
import torch

from .kmeans import cluster_sums, nearest

AT_ONCE = 4096                             # entries compared pair by pair; the positions of a block can have 20,000


def merge(entries: torch.Tensor, counts: torch.Tensor, keep: int, criterion: str = "ward") -> torch.Tensor:
    """Entries float32 [n, dim] that `counts` [n] vectors use -> [keep, dim]; as they are where there are no more.

    usage: the most used stay, each moved to the weighted mean of itself and of the others that are nearest to it.
    ward: the pair that costs least squared error, n_i n_j / (n_i + n_j) times their squared distance, becomes its
    weighted mean, again and again (Ward 1963). More than AT_ONCE entries are first halved, AT_ONCE at a time.
    """
    if len(entries) <= keep:
        return entries
    if criterion == "usage":
        return _usage(entries, counts, keep)
    used = counts.gt(0) if int(counts.gt(0).sum()) >= keep else torch.ones_like(counts, dtype=torch.bool)
    found, mass = (part[used].double().cpu().numpy() for part in (entries, counts))  # the others merge at no cost
    while len(found) > max(AT_ONCE, 2 * keep):
        halves = [_ward(found[i:i + AT_ONCE], mass[i:i + AT_ONCE], max(1, len(found[i:i + AT_ONCE]) // 2))
                  for i in range(0, len(found), AT_ONCE)]
        found, mass = (np.concatenate(part) for part in zip(*halves, strict=True))
    return torch.from_numpy(_ward(found, mass, keep)[0]).to(entries.device, entries.dtype)


def _usage(entries: torch.Tensor, counts: torch.Tensor, keep: int) -> torch.Tensor:
    kept = entries[counts.argsort(descending=True, stable=True)[:keep]]
    nearby = nearest(entries[None], kept[None])
    totals, mass = cluster_sums(entries[None], counts[None].to(entries.dtype), nearby, keep)
    return torch.where(mass[0, :, None] > 0, totals[0] / mass[0].clamp(min=1e-30)[:, None], kept)


def _ward(entries: np.ndarray, counts: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 [n, dim] and [n] -> the `keep` clusters of least cost: means and counts, by their first members"""
    costs, first, second = _nearest_neighbor_chain(entries, counts)
    cluster = np.arange(len(entries))
    for merged in np.argsort(costs, kind="stable")[:len(entries) - keep]:
        cluster[cluster == second[merged]] = first[merged]
    roots, member = np.unique(cluster, return_inverse=True)
    mass, totals = np.zeros(len(roots)), np.zeros((len(roots), entries.shape[1]))
    np.add.at(mass, member, counts)
    np.add.at(totals, member, entries * counts[:, None])
    means = np.where(mass[:, None] > 0, totals / np.maximum(mass, 1e-300)[:, None], entries[roots])
    return means, mass


def _nearest_neighbor_chain(entries: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All n - 1 merges of Ward's hierarchy: costs, and the first members of the two clusters, the lower one first.

    Murtagh 1983: two clusters that are each other's cheapest may be merged at once, whatever is cheapest elsewhere.
    """
    points, mass, names = entries.copy(), counts.copy(), np.arange(len(entries))
    merges, chain, n = [], [], len(entries)                                         # the first n rows are in use
    while n > 1:
        if not chain:
            chain.append(0)
        i = chain[-1]
        cost = np.square(points[:n] - points[i]).sum(1) * mass[:n] * mass[i] / np.maximum(mass[:n] + mass[i], 1e-300)
        cost[i] = np.inf
        j = int(cost.argmin())
        if len(chain) < 2 or cost[chain[-2]] > cost[j]:
            chain.append(j)
            continue
        del chain[-1]
        i, j = sorted((i, chain.pop()))
        merges.append((cost[i] if np.isfinite(cost[i]) else cost[j], *sorted((names[i], names[j]))))
        total = mass[i] + mass[j]
        if total > 0:
            points[i] = (points[i] * mass[i] + points[j] * mass[j]) / total
        mass[i], names[i], n = total, min(names[i], names[j]), n - 1
        points[j], mass[j], names[j] = points[n], mass[n], names[n]                 # the last row moves into the gap
        chain = [j if k == n else k for k in chain]
    costs, first, second = zip(*merges, strict=True) if merges else ((), (), ())
    return np.asarray(costs), np.asarray(first, np.int64), np.asarray(second, np.int64)
