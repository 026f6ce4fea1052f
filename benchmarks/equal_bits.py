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
LEAST_LAYERS = 5                           # fewer: a bootstrap interval is far too narrow, so no claim
LINEARS = ", linear layers"                # set of the linear layers alone, for peers that code no convolution


def read_curve(points: list[tuple[float, float]], bits: float) -> tuple[float, int]:
    """Error at `bits` of a curve of points (bits, error), and where that lies: -1 below, 0 within, 1 above its rates.

    Between two rates it is what a mix of both has: linear in bits. Beyond the ends nothing is extrapolated: above the
    highest rate our error stays what it is there (at fewer bits), below the lowest likewise (no claim rests on it).
    """
    points = sorted(points)
    if len(points) < 2:
        raise ValueError(f"expected a curve of two rates at least, got {len(points)}")
    if not points[0][0] <= bits <= points[-1][0]:
        return (points[0][1], -1) if bits < points[0][0] else (points[-1][1], 1)
    at = next(i for i in range(1, len(points)) if bits <= points[i][0])
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    return y0 + (bits - x0) / (x1 - x0) * (y1 - y0), 0


def compare(rows: list[dict]) -> list[dict]:
    """rows: one a layer and method (set, layer, shape, method, family, weights, bits, coded_share, plain, correlated).

    -> one row a set, method and metric: its own error, and ours over its error at its bits, both as geometric means
    over layers with 95 % bootstrap intervals; `verdict` in words. Methods that code less than LEAST_SHARE of a set get
    further rows on its linear layers alone.
    """
    groups = defaultdict(list)
    curves = defaultdict(list)
    for row in rows:
        groups[row["set"], row["method"]].append(row)
        if row["method"].startswith(CURVE):
            curves[row["set"], row["layer"]].append(row)
    for (name, method), some in list(groups.items()):
        linears = [row for row in some if len(row["shape"]) == 2]
        if _share(some) < LEAST_SHARE <= _share(linears):
            groups[name + LINEARS, method] = linears
    return [_compared(name, method, metric, some, curves) for (name, method), some in sorted(groups.items())
            for metric in METRICS]


def _share(rows: list[dict]) -> float:
    """Share of the weights that are coded; 0 of none"""
    return sum(row["weights"] * row["coded_share"] for row in rows) / max(1, sum(row["weights"] for row in rows))


def _compared(name: str, method: str, metric: str, rows: list[dict], curves) -> dict:
    coded = [row for row in rows if row["coded_share"] == 1 and row[metric] > 0]
    gaps, places = _gaps(coded, curves, metric) if not method.startswith(CURVE) else ([], [])
    gap = bootstrap(gaps) if gaps else None
    return {"set": name, "method": method, "family": rows[0]["family"], "metric": metric,
            "bits": _mean_bits(rows), "bits_where_coded": _mean_bits(coded) if coded else None,
            "error": _exp(bootstrap([math.log(row[metric]) for row in coded]) if coded else None),
            "ours_over_it": _exp(gap), "layers": len(rows), "layers_compared": len(gaps), "coded_share": _share(rows),
            "below_our_rates": places.count(-1), "above_our_rates": places.count(1),
            "verdict": _verdict(method, _share(rows), gap, places)}


def _mean_bits(rows: list[dict]) -> float:
    """Stored bits a weight over all layers"""
    return sum(row["weights"] * row["bits"] for row in rows) / sum(row["weights"] for row in rows)


def _gaps(rows, curves, metric) -> tuple[list[float], list[int]]:
    """log(our error / its error) at its bits for every layer with a curve, and where its bits lie (read_curve)"""
    gaps, places = [], []
    for row in rows:
        points = [(point["bits"], point[metric]) for point in curves[row["set"], row["layer"]]]
        if len(points) > 1:
            ours, place = read_curve(points, row["bits"])
            gaps.append(math.log(ours / row[metric]))
            places.append(place)
    return gaps, places


def _verdict(method: str, share: float, gap, places: list[int]) -> str:
    if method.startswith(CURVE):
        return "the curve itself"
    if gap is None:
        return "no claim: nothing to compare"
    if share < LEAST_SHARE:
        return f"no claim: it codes {100 * share:.0f} % of these weights"
    if len(places) < LEAST_LAYERS:
        return f"no claim: {len(places)} layers are too few, {LEAST_LAYERS} are needed"
    if -1 in places:
        return f"no claim: it stores less than our lowest rate on {places.count(-1)} of {len(places)} layers"
    above = places.count(1)
    if above and gap.high >= 0:
        has = "it has less error and" if gap.low > 0 else "it"
        return f"no claim: {has} stores more than our highest rate on {above} of {len(places)} layers"
    if not gap.excludes_zero:
        return "undecided"
    fewer = f", with fewer bits on {above} of {len(places)} layers" if above else ""
    return f"ours has less error{fewer}" if gap.high < 0 else "ours has more error"


def _exp(interval) -> list[float] | None:
    """[low, value, high] of an interval of logarithms"""
    return None if interval is None else [math.exp(interval.low), math.exp(interval.value), math.exp(interval.high)]
