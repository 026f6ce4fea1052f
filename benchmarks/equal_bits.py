"""Compares methods at equal stored bits: our rate curve read at the bits a peer really stores, layer by layer."""
from __future__ import annotations

import math
from collections import defaultdict

from alias import load_vqpack

load_vqpack()
from vqpack.vq_core.metrics import bootstrap  # noqa: E402

CURVE = "ours-trellis-"
METRICS = ("plain", "correlated")
LEAST_SHARE = 0.95                         # of the weights coded on both sides, else no claim


def read_curve(points: list[tuple[float, float]], bits: float) -> tuple[float, bool]:
    """log error at `bits` on the line through points (bits, error), and whether that lies beyond them.

    Log error is close to linear in bits; beyond the ends the last piece is prolonged.
    """
    points = sorted(points)
    if len(points) < 2:
        raise ValueError(f"expected a curve of two rates at least, got {len(points)}")
    at = next((i for i in range(1, len(points) - 1) if bits <= points[i][0]), len(points) - 1)
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    share = (bits - x0) / (x1 - x0)
    return math.log(y0) + share * (math.log(y1) - math.log(y0)), not points[0][0] <= bits <= points[-1][0]


def compare(rows: list[dict], least_layers: int = 2) -> list[dict]:
    """rows: one a layer and method (set, layer, method, family, weights, bits, coded_share, plain, correlated).

    -> one row a set, method and metric: its own error, and ours over its error at its bits, both as geometric means
    over layers with 95 % bootstrap intervals; `verdict` in words.
    """
    groups = defaultdict(list)
    curves = defaultdict(list)
    for row in rows:
        groups[row["set"], row["method"]].append(row)
        if row["method"].startswith(CURVE):
            curves[row["set"], row["layer"]].append(row)
    return [_compared(name, method, metric, some, curves) for (name, method), some in sorted(groups.items())
            for metric in METRICS if len(some) >= least_layers]


def _compared(name: str, method: str, metric: str, rows: list[dict], curves) -> dict:
    weights = sum(row["weights"] for row in rows)
    share = sum(row["weights"] * row["coded_share"] for row in rows) / weights
    coded = [row for row in rows if row["coded_share"] == 1 and row[metric] > 0]
    error = bootstrap([math.log(row[metric]) for row in coded]) if coded else None
    gaps, beyond = _gaps(name, coded, curves, metric) if not method.startswith(CURVE) else ([], 0)
    gap = bootstrap(gaps) if gaps else None
    return {"set": name, "method": method, "family": rows[0]["family"], "metric": metric,
            "bits": sum(row["weights"] * row["bits"] for row in rows) / weights,
            "bits_where_coded": (sum(row["weights"] * row["bits"] for row in coded)
                                 / max(1, sum(row["weights"] for row in coded))) if coded else None,
            "error": _exp(error), "ours_over_it": _exp(gap), "layers": len(rows), "layers_compared": len(gaps),
            "coded_share": share, "beyond_our_rates": beyond, "verdict": _verdict(method, share, gap, beyond)}


def _gaps(name, rows, curves, metric):
    """log(our error / its error) at its bits for every layer with a curve, and how many lie beyond our rates"""
    gaps, beyond = [], 0
    for row in rows:
        points = [(point["bits"], point[metric]) for point in curves[name, row["layer"]]]
        if len(points) > 1:
            ours, outside = read_curve(points, row["bits"])
            gaps.append(ours - math.log(row[metric]))
            beyond += outside
    return gaps, beyond


def _verdict(method: str, share: float, gap, beyond: int) -> str:
    if method.startswith(CURVE):
        return "the curve itself"
    if gap is None:
        return "no claim: nothing to compare"
    if share < LEAST_SHARE:
        return f"no claim: it codes {100 * share:.0f} % of these weights"
    if beyond:
        return f"no claim: {beyond} layers beyond our rates"
    if not gap.excludes_zero:
        return "undecided"
    return "ours has less error" if gap.high < 0 else "ours has more error"


def _exp(interval) -> list[float] | None:
    """[low, value, high] of an interval of logarithms"""
    return None if interval is None else [math.exp(interval.low), math.exp(interval.value), math.exp(interval.high)]
