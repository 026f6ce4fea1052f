"""What calibration keeps of activations: least and largest values by noise level, channel and token, and samples."""
from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..errors import PlanError
from .levels import Levels
from .points import Point
from .specs import BINS


@dataclass(frozen=True, eq=False)
class PointRanges:
    """What one point saw. Bins that saw nothing hold zeros.

    Samples: values [m] of single elements of the held-out pictures, with their places [m, 3]: bin, token, channel.
    """

    counts: torch.Tensor                   # calls, int64 [bins]
    channel_low: torch.Tensor              # float32 [bins, channels]
    channel_high: torch.Tensor
    token_low: torch.Tensor                # float32 [bins, tokens]
    token_high: torch.Tensor
    values: torch.Tensor                   # float32 [m]
    places: torch.Tensor                   # int32 [m, 3]

    def merged(self, intervals: int, axis: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Least and largest values of an axis, "channel" or "token", float32 [intervals, n] each.

        An interval that saw nothing gets the range of the nearest bin that did.
        """
        low, high = getattr(self, f"{axis}_low"), getattr(self, f"{axis}_high")
        seen = self.counts.nonzero()[:, 0]                                          # bins
        found = []
        for interval in range(intervals):
            first, stop = interval * BINS // intervals, (interval + 1) * BINS // intervals
            bins = seen[(seen >= first) & (seen < stop)]
            if not len(bins):
                bins = seen[(2 * seen + 1 - first - stop).abs().argmin()][None]
            found.append((low[bins].amin(0), high[bins].amax(0)))
        return torch.stack([pair[0] for pair in found]), torch.stack([pair[1] for pair in found])


@dataclass(frozen=True)
class Ranges:
    """Activation statistics of one UNet: point's name -> what it saw. calls: of the UNet that were looked at."""

    levels: Levels
    points: dict[str, PointRanges]
    calls: int
    left_out: int = 0                      # calls with NaN or infinite values

    def of(self, point: Point) -> PointRanges:
        """PlanError where there are none, or of another width."""
        found = self.points.get(point.name)
        if found is None or found.channel_low.shape[1] != point.channels:
            got = "none" if found is None else f"some of {found.channel_low.shape[1]} channels"
            raise PlanError(f"expected activation statistics of '{point.name}' with {point.channels} channels, got "
                            f"{got}: calibrate the activations of this model")
        return found


@dataclass
class Seen:
    """A point's statistics while they are collected."""

    channels: int
    counts: torch.Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))
    extremes: dict[str, torch.Tensor] = field(default_factory=dict)
    values: list[torch.Tensor] = field(default_factory=list)
    places: list[torch.Tensor] = field(default_factory=list)

    def widen(self, x: torch.Tensor, which: int) -> None:
        """Ranges take one call's values in: float32 [n, tokens, channels], all finite; which: its bin."""
        for axis, dims in (("channel", (0, 1)), ("token", (0, 2))):
            self._raise(f"{axis}_low", -x.amin(dims), which)
            self._raise(f"{axis}_high", x.amax(dims), which)
        self.counts[which] += 1

    def sample(self, x: torch.Tensor, which: int, count: int, generator: torch.Generator) -> None:
        """Keep `count` of one call's values."""
        _, tokens, channels = x.shape
        chosen = torch.randint(x.numel(), (count,), generator=generator)
        self.values.append(x.reshape(-1)[chosen.to(x.device)].cpu())
        row = chosen // channels
        self.places.append(torch.stack([torch.full_like(row, which), row % tokens, chosen % channels], 1).int())

    def _raise(self, name: str, most: torch.Tensor, which: int) -> None:
        """Running maxima [bins, n]; least values are kept negated."""
        if name not in self.extremes:
            self.extremes[name] = torch.full((BINS, len(most)), -torch.inf)
        kept = self.extremes[name]
        kept[which] = torch.maximum(kept[which], most.cpu())

    def ranges(self) -> PointRanges | None:
        """What is kept; None where nothing was seen."""
        if not self.values or not self.extremes:
            return None
        found = {name: most.masked_fill(most.isinf(), 0.0) for name, most in self.extremes.items()}
        found = {name: -most if name.endswith("low") else most for name, most in found.items()}
        return PointRanges(self.counts, values=torch.cat(self.values), places=torch.cat(self.places), **found)
