"""learn_steps(): step sizes of tables by gradient (LSQ, Esser et al. 2020), as Q-Diffusion learns its activations'.

A table's ranges begin as the extremes that were seen. One factor for each table and noise interval is learned by Adam
on the distance to what the UNet answers with its activations as they are; rounding passes gradients on unchanged.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..calibration.calls import Calls
from ..calibration.settings import HELD_OUT_SHARE, held_out_of
from ..errors import PlanError, UnsupportedError
from ..progress import Progress
from .attach import Attached, quantize_activations
from .quantizers import TableQuantizer
from .ranges import Ranges
from .specs import Activations
from .tables import Table

STEPS, RATE = 120, 0.01                    # of Adam, on the logarithm of a factor
MOST = 3.0                                 # of that logarithm, either way: no step leaves 1/20 to 20 of its extremes
LOOK_EVERY = 30                            # steps between looks at held-out calls


@dataclass(frozen=True, eq=False)
class LearnedTable(Table):
    """A table whose ranges are times exp(log_factor) of their interval, float32 [intervals, 1]."""

    log_factor: torch.Tensor | None = None

    def fixed(self) -> Table:
        """The ranges as they are now."""
        factor = self.log_factor.detach().exp()
        return Table(self.low * factor, self.high * factor, self.axis, self.bits)

    def quantize(self, x: torch.Tensor, intervals: torch.Tensor, name: str) -> torch.Tensor:
        """As Table.quantize, with gradients."""
        shape = (len(intervals), -1, 1) if self.axis == "token" else (len(intervals), 1, -1)
        factor = self.log_factor.exp()[intervals]                                   # [n, 1]
        low, high = ((ends[intervals] * factor).view(shape) for ends in (self.low, self.high))
        return straight_through(x, low, high, self.bits)


def straight_through(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int) -> torch.Tensor:
    """grids.affine, whose rounding counts as the identity for gradients; zero points have none."""
    levels = 2**bits - 1
    step = (high - low) / levels
    zero = (-low / step).round().detach()
    place = x / step
    codes = (place + (place.round() - place).detach() + zero).clamp(0, levels)
    return torch.where(step > 0, (codes - zero) * step, x)


def learn_steps(unet: nn.Module, settings: Activations | str, ranges: Ranges, drawn: Sequence[Calls],
                steps: int = STEPS, rate: float = RATE, seed: int = 0, progress: Progress | None = None) -> Attached:
    """Quantize a UNet's activations as quantize_activations does, with learned step sizes.

    drawn: recorded calls of one size; a quarter of the pictures, or the only one, tells which steps are kept: never
    worse there than the extremes. PlanError where nothing has a table, UnsupportedError where no call was finite.
    """
    progress = progress or Progress()
    held = held_out_of(len(drawn), HELD_OUT_SHARE)
    calls = [(picture, calls, call) for picture, calls in enumerate(drawn)
             for call, finite in enumerate(calls.finite) if finite]
    lessons = [(each, call) for picture, each, call in calls if picture not in held] or [c[1:] for c in calls]
    judged = [(each, call) for picture, each, call in calls if picture in held] or lessons
    if not lessons:
        raise UnsupportedError("no recorded call of the UNet was finite: draw with another sampler or checkpoint")
    wanted = {id(each): {} for each, _ in lessons + judged}
    for each, call in [*lessons, *judged]:
        wanted[id(each)][call] = each.ask(unet, call)
    attached = quantize_activations(unet, settings, ranges)
    try:
        tables = {name: made for name, made in attached.quantizers.items() if isinstance(made, TableQuantizer)}
        if not tables:
            raise PlanError("these activations have no table whose steps could be learned: expected static ranges or "
                            "groups")
        _learn(unet, tables, lessons, judged, wanted, steps, rate, seed, progress)
    except BaseException:
        attached.remove()
        raise
    return attached


def _learn(unet, tables: dict[str, TableQuantizer], lessons, judged, wanted, steps: int, rate: float, seed: int,
           progress: Progress) -> None:
    for made in tables.values():
        table, factor = made.table, torch.zeros(made.table.intervals, 1, requires_grad=True)
        made.table = LearnedTable(table.low, table.high, table.axis, table.bits, factor)
    adam = torch.optim.Adam([made.table.log_factor for made in tables.values()], rate)
    g = torch.Generator().manual_seed(seed)
    best, kept = _distance(unet, judged, wanted), _fixed(tables)
    progress.start("learning step sizes", steps)
    for step in range(1, steps + 1):
        each, call = lessons[int(torch.randint(len(lessons), (1,), generator=g))]
        target = wanted[id(each)][call]
        loss = (each.ask(unet, call, gradients=True) - target).square().mean() / target.square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for made in tables.values():
                made.table.log_factor.clamp_(-MOST, MOST)
        if step % LOOK_EVERY == 0 or step == steps:
            here = _distance(unet, judged, wanted)
            if here < best:                # NaN is not
                best, kept = here, _fixed(tables)
        progress.advance(1)
    for name, made in tables.items():
        made.table = kept[name]
    progress.finish()


def _fixed(tables: dict[str, TableQuantizer]) -> dict[str, Table]:
    return {name: made.table.fixed() for name, made in tables.items()}


def _distance(unet, calls, wanted) -> float:
    """Squared error over the answers' square, all calls."""
    pairs = [(each.ask(unet, call), wanted[id(each)][call]) for each, call in calls]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs))
