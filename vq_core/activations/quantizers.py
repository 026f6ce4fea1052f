"""What a spec makes of one point's values: a function of a tensor, built once from the layer and its statistics."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import PlanError, UnsupportedError
from .grids import symmetric
from .levels import Clock
from .points import Point, as_before, tokens_first
from .ranges import Ranges
from .rotated import CodedRange, coded_range
from .specs import GroupSpec, InputSpec, StaticSpec, TokenSpec
from .tables import Table, group_table, static_table


class TokenQuantizer:
    """One symmetric scale a token and coded range; of kernels larger than 1x1 one a picture.

    Scales of single pixels do not come out of a sum over a kernel's taps.
    """

    def __init__(self, point: Point, spec: TokenSpec, ranges: Sequence[CodedRange]):
        self.point, self.bits, self.ranges = point, spec.bits, ranges
        self.dims = (1, 2) if point.taps > 1 and point.side == "input" else (2,)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """A point's values, any shape -> the same, quantized."""
        tokens = _finite(x, self.point)                                             # [n, tokens, channels]
        found = [part.back(symmetric(part.into(tokens[..., part.start:part.stop]), self.bits, self.dims))
                 for part in self.ranges]
        return as_before(found[0] if len(found) == 1 else torch.cat(found, -1), x, self.point.convolution)


class TableQuantizer:
    """Ranges from a table, looked up by what the UNet was told about the noise; each sample of a batch has its own."""

    def __init__(self, point: Point, table: Table, clock: Clock, start_kept: bool):
        self.point, self.table, self.clock, self.start_kept = point, table, clock, start_kept

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """A point's values, any shape -> the same, quantized."""
        tokens = _finite(x, self.point)                                             # [n, tokens, channels]
        if self.table.low.device != x.device:
            self.table = self.table.to(x.device)
        intervals = self.clock.intervals(self.table.intervals, len(tokens), x.device)
        found = self.table.quantize(tokens, intervals, self.point.name)
        if self.start_kept:
            found[:, 0] = tokens[:, 0]
        return as_before(found, x, self.point.convolution)


def make_quantizer(point: Point, module: nn.Module, spec: InputSpec, ranges: Ranges | None, clock: Clock,
                   keep_start: bool) -> TokenQuantizer | TableQuantizer | None:
    """None where the values are kept. PlanError where a spec needs statistics that are not there."""
    if spec.kind == "keep":
        return None
    if isinstance(spec, TokenSpec):
        return TokenQuantizer(point, spec, input_ranges(point, module, spec.rotated))
    if ranges is None:
        raise PlanError(f"'{spec.kind}' activations of '{point.name}' need activation statistics, and none were given: "
                        f"calibrate them, or choose 'int8'")
    start_kept = keep_start and point.side == "output" and point.text and ".to_k." in point.key
    return TableQuantizer(point, make_table(point, module, spec, ranges), clock, start_kept)


def make_table(point: Point, module: nn.Module, spec: StaticSpec | GroupSpec, ranges: Ranges) -> Table:
    """The ranges of one point."""
    if isinstance(spec, GroupSpec):
        return group_table(ranges.of(point), spec)
    return static_table(ranges.of(point), spec,
                        [(part.start, part.stop) for part in input_ranges(point, module, rotated=False)])


def input_ranges(point: Point, module: nn.Module, rotated: bool) -> list[CodedRange]:
    """The column ranges a layer is coded in: where two sources are concatenated, each has its own (Q-Diffusion)."""
    coded = getattr(module, "coded", None)
    if coded is None or point.side == "output":
        return [CodedRange(0, point.channels)]
    return [coded_range(start, stop, part) if rotated else CodedRange(start, stop)
            for start, stop, _, part in coded.parts]


def _finite(x: torch.Tensor, point: Point) -> torch.Tensor:
    tokens = tokens_first(x, point.convolution)
    if not bool(torch.isfinite(tokens).all()):
        raise UnsupportedError(f"'{point.name}' was given NaN or infinite values, which no grid holds: draw without "
                               f"activation quantization to see whether the model itself gives them")
    return tokens
