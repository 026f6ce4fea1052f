"""What a checkpoint's own weights will lose at a plan, from whole rows of some dozens of its layers.

Layers are sorted by their code, what they do and their size. Points at even distances along the sum of what each counts
for choose among them (systematic sampling, probability proportional to size), so that the plain mean over points is the
mean over the weights, or over what the layers do to the picture. A layer's error is that of the planner's sample
(planning/costs.py), which looks at the same rows; no others are read. How near this comes: docs/interface.md.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .arch import Layer
from .coding_time import measuring
from .encode.trellis import sample_rows
from .errors import PlanError
from .plan import Plan
from .planning.costs import sampled_error
from .planning.run import RATES
from .planning.sensitivity import Sensitivity, load_sensitivity
from .progress import Progress
from .source import Source, open_source
from .spec import Spec

# Points of a sample: standard deviations of 0.3 % of a trellis' error, 2 % of a palette's, 4 % of a uniform code's, and
# 0.7 s of a core at SDXL's size and 3 bits (benchmarks/own_error.py). Twice as many take twice as long for 0.7 of that.
POINTS = 24
LEAST = 3                                  # points of each code of a plan
RUNS, RUN = 4, 4                           # rows whose squares stand for a layer's: runs of neighbors, evenly spread
MOST_KEPT = 256                            # results in memory
_found: dict[tuple, Sampled] = {}


@dataclass(frozen=True)
class Coded:
    """A layer of the UNet and the spec that will code it."""

    layer: Layer
    spec: Spec


@dataclass(frozen=True)
class Mean:
    """Relative squared error, its standard deviation, both over what the layers count for."""

    error: float
    deviation: float


@dataclass(frozen=True)
class Sampled:
    """What a sample says. Errors are squared, over the squared norm."""

    weights: Mean                          # over the weights of the coded UNet layers: what a file's report says
    layers: tuple[str, ...]                # keys of those looked at
    of: int                                # coded layers
    picture: Mean | None = None            # over what layers do to the picture, where sensitivities are known
    snr: float | None = None               # predicted noise over its change in dB, as Plan (VQ) promises it
    snr_deviation: float | None = None


def can_sample(specs: Sequence[Spec]) -> bool:
    """Whether a few rows show what these codes lose: vector codes learn their books from the whole layer."""
    kinds = {spec.kind for spec in specs} - {"dense"}
    return bool(kinds) and kinds <= set(RATES)


def known_sample(path: Path, plan: Plan, sensitivity: Path | None) -> Sampled | None:
    """The sample where it was taken, else None."""
    return _found.get(_question(path, plan, sensitivity))


def sample_of(path: Path, plan: Plan, sensitivity: Path | None = None, progress: Progress | None = None) -> Sampled:
    """The sample, taken the first time (a second or two) and known then while the files stay as they are.

    sensitivity: a file that fits the checkpoint (planning/sensitivity.py). progress: is asked whether to stop. VQError
    where a file is damaged or `can_sample` says no.
    """
    question = _question(path, plan, sensitivity)
    with measuring:
        if question not in _found:
            with open_source(path) as source:
                taken = _Sampling(source, plan, progress or Progress()).run(
                    load_sensitivity(sensitivity) if sensitivity else None)
            while len(_found) >= MOST_KEPT:
                del _found[next(iter(_found))]
            _found[question] = taken
        return _found[question]


def forget() -> None:
    """Take every sample anew."""
    _found.clear()


def _question(path: Path, plan: Plan, sensitivity: Path | None) -> tuple:
    """What a result is kept under: it changes when a file changes, and not with the text encoders."""
    return plan.unet, plan.rules, plan.layers, *(
        (str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in (path, sensitivity) if file)


class _Sampling:
    """One sample being taken."""

    def __init__(self, source: Source, plan: Plan, progress: Progress):
        coded = [Coded(layer, plan.spec_for(layer)) for layer in source.layers if layer.component == "unet"]
        self.coded = sorted((one for one in coded if one.spec.kind != "dense"), key=_order)
        if not can_sample([one.spec for one in self.coded]):
            raise PlanError(f"expected layers of '{source.name}' coded with {', '.join(RATES)}: a sample of rows says "
                            f"nothing of other codes")
        self.source, self.progress, self.errors = source, progress, {}

    def run(self, sensitivity: Sensitivity | None) -> Sampled:
        """The means over weights and, where every layer has a factor, over what layers do to the picture."""
        weights = self._mean(np.asarray([one.layer.numel for one in self.coded], np.float64))
        picture = snr = deviation = None
        factors = [sensitivity.factors.get(one.layer.key) for one in self.coded] if sensitivity else [None]
        if None not in factors:
            norms = [self._norm(one.layer) for one in self.coded]
            worth = np.asarray(factors) * [norm for norm, _ in norms]
            picture = self._mean(worth)
            snr, deviation = _decibels(sensitivity.noise_power, worth, [spread for _, spread in norms], picture)
        return Sampled(weights, tuple(self.errors), len(self.coded), picture, snr, deviation)

    def _mean(self, counts: np.ndarray) -> Mean:
        """Mean error over what the layers count for, float64 [layers], code by code."""
        specs, total, error, variance = [one.spec for one in self.coded], float(counts.sum()), 0.0, 0.0
        for spec in dict.fromkeys(specs):
            members = np.flatnonzero([other == spec for other in specs])
            share = float(counts[members].sum()) / total if total else 0.0
            if share:
                chosen = members[spread_points(counts[members], max(LEAST, round(POINTS * share)))]
                found = [self._error(self.coded[number]) for number in chosen]
                error += share * float(np.mean(found))
                variance += share**2 * _variance(found)
        return Mean(error, math.sqrt(variance))

    def _error(self, one: Coded) -> float:
        """Relative error of a layer."""
        key = one.layer.key
        if key not in self.errors:
            self.progress.check()
            rows = [self.source.rows(key, row, row + 1).float() for row in sample_rows(one.layer.shape[0]).tolist()]
            self.errors[key] = sampled_error(torch.cat(rows), one.spec, one.layer.splits)
        return self.errors[key]

    def _norm(self, layer: Layer) -> tuple[float, float]:
        """-> (estimated squared norm, its relative variance), from a few runs of rows"""
        self.progress.check()
        rows = layer.shape[0]
        runs = min(RUNS, max(1, rows // RUN))
        starts = [number * (rows - RUN) // max(1, runs - 1) if rows > RUN else 0 for number in range(runs)]
        found = np.asarray([float(self.source.rows(layer.key, start, start + RUN).double().square().mean())
                            for start in starts])
        mean = float(found.mean())
        return layer.numel * mean, float(found.var(ddof=1)) / runs / mean**2 if runs > 1 and mean else 0.0


def spread_points(counts: np.ndarray, points: int) -> np.ndarray:
    """Numbers of the layers under evenly spread points along the sum of counts, float64 [layers] -> int [points]."""
    edges = np.cumsum(counts)
    return np.searchsorted(edges, (np.arange(points) + 0.5) * edges[-1] / points, side="right").clip(max=len(edges) - 1)


def _variance(found: Sequence[float]) -> float:
    """Of the mean of an even sample along a sorted list, from neighbors' differences (Wolter 2007, section 8.2, v2)."""
    count = len(found)
    return float(np.square(np.diff(found)).sum()) / (2 * count * (count - 1))


def _decibels(power: float, worth: np.ndarray, spreads: Sequence[float], picture: Mean) -> tuple[float | None, float]:
    """(predicted noise over its change in dB, its standard deviation); worth: damage of losing each layer wholly."""
    change = float(worth.sum()) * picture.error
    if not change > 0:
        return None, 0.0
    norms = float((np.square(worth) * spreads).sum()) / float(worth.sum())**2
    relative = math.sqrt(norms + (picture.deviation / picture.error)**2)
    return 10 * math.log10(power / change), 10 / math.log(10) * relative


def _order(one: Coded) -> tuple:
    return repr(one.spec), one.layer.role, one.layer.numel
