"""Tables of ranges: one a layer or concatenated source (Q-Diffusion, TALSQ), or one a group (DGQ)."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..encode.kmeans import fit, nearest
from ..errors import PlanError
from .grids import affine
from .ranges import PointRanges
from .specs import BINS, GroupSpec, StaticSpec

KMEANS_STEPS = 100                         # most; on a few thousand points of two numbers it stops far earlier
# Intervals that are tried below those asked for. Held-out squared error over square, testbed, 12 pictures, 8 groups of
# channels at 8 bits, geometric mean of 119 inputs: 1: 1.56e-4, 5: 2.24e-4, 20: 1.29e-3; the best of each layer .97e-4.
FEWER = (1, 5)


@dataclass(frozen=True, eq=False)
class Table:
    """Ranges by interval along one axis of a point's values: float32 [intervals, channels or tokens]."""

    low: torch.Tensor
    high: torch.Tensor
    axis: str                              # "channel", "token" or, one range for all values, "whole"
    bits: int

    @property
    def intervals(self) -> int:
        """Stretches of the way from noise to picture."""
        return len(self.low)

    def to(self, device: torch.device) -> Table:
        """The same on another device."""
        return replace(self, low=self.low.to(device), high=self.high.to(device))

    def quantize(self, x: torch.Tensor, intervals: torch.Tensor, name: str) -> torch.Tensor:
        """float32 [n, tokens, channels]; intervals: int64 [n] or [1]. PlanError for another number of tokens."""
        size = x.shape[1]
        if self.axis == "token" and size != self.low.shape[1]:
            raise PlanError(f"the activations of '{name}' were calibrated for {self.low.shape[1]} tokens, this "
                            f"picture has {size}: draw the calibrated size, calibrate this one, or group channels")
        shape = (len(intervals), -1, 1) if self.axis == "token" else (len(intervals), 1, -1)
        return affine(x, self.low[intervals].view(shape), self.high[intervals].view(shape), self.bits)


def static_table(seen: PointRanges, spec: StaticSpec, sources: Sequence[tuple[int, int]]) -> Table:
    """One range for each source (its channels start..stop) and interval."""
    low, high = seen.merged(spec.intervals, "channel")                              # [intervals, channels]
    for start, stop in sources:
        low[:, start:stop] = low[:, start:stop].amin(1, keepdim=True)
        high[:, start:stop] = high[:, start:stop].amax(1, keepdim=True)
    return Table(low, high, "channel", spec.bits)


def group_table(seen: PointRanges, spec: GroupSpec) -> Table:
    """Groups along the axis that the spec names or asks to choose; time embeddings, one token each, have one range."""
    if seen.token_low.shape[1] == 1:
        return _whole(seen, spec.intervals, spec.bits)
    if spec.axis == "auto":
        return min(_candidates(seen, spec), key=lambda table: sample_error(table, seen))
    axes = ("channel", "token") if spec.axis == "paper" else (spec.axis,)
    ranges = {axis: seen.merged(spec.intervals, axis) for axis in axes}
    axis = max(axes, key=lambda axis: spread(*ranges[axis]))
    return grouped(*ranges[axis], axis, spec)


def _candidates(seen: PointRanges, spec: GroupSpec) -> Iterator[Table]:
    """Both axes and one range for all values, in up to so many intervals.

    Judged by held-out samples, where a value outside its range counts: narrow ranges need many pictures.
    """
    for intervals in sorted({spec.intervals, *(count for count in FEWER if count < spec.intervals)}):
        yield _whole(seen, intervals, spec.bits)
        for axis in ("channel", "token"):
            yield grouped(*seen.merged(intervals, axis), axis, spec)


def _whole(seen: PointRanges, intervals: int, bits: int) -> Table:
    low, high = seen.merged(intervals, "channel")                                   # [intervals, channels]
    return Table(low.amin(1, keepdim=True), high.amax(1, keepdim=True), "whole", bits)


def grouped(low: torch.Tensor, high: torch.Tensor, axis: str, spec: GroupSpec) -> Table:
    """Ranges [intervals, n] -> those of their groups: K-means on (least, largest), each interval for itself."""
    points = torch.stack([low, high], -1)                                           # [intervals, n, 2]
    size = min(spec.groups, points.shape[1])
    centers = fit(points, torch.ones_like(low), size, KMEANS_STEPS)
    codes = nearest(points, centers)                                                # int64 [intervals, n]
    least = torch.full((len(low), size), torch.inf).scatter_reduce(1, codes, low, "amin")
    most = torch.full((len(low), size), -torch.inf).scatter_reduce(1, codes, high, "amax")
    return Table(least.gather(1, codes), most.gather(1, codes), axis, spec.bits)


def spread(low: torch.Tensor, high: torch.Tensor) -> float:
    """DGQ's criterion D: how far the largest values lie apart plus how far the least do, summed over intervals."""
    return float((high.amax(1) - high.amin(1) + low.amax(1) - low.amin(1)).sum())


def sample_error(table: Table, seen: PointRanges) -> float:
    """Mean squared error of the samples."""
    which, token, channel = seen.places.long().unbind(1)
    intervals = which * table.intervals // BINS
    place = {"channel": channel, "token": token, "whole": torch.zeros_like(token)}[table.axis]
    got = affine(seen.values, table.low[intervals, place], table.high[intervals, place], table.bits)
    return float((got - seen.values).square().mean())
