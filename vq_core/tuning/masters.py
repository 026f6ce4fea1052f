"""Float32 masters of what a part stores: scales, books, tables. Rounded to what a file can hold whenever they are used.

A master is a relative change, 0 at the start, so that one learning rate suits all layers: a scale is
`stored * (1 + change)`, an entry of a book or table `stored + rms of the book * change`.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from ...kernels.dispatch import decode_part
from ...kernels.gradients import entry_sums, unrotated_gradient
from ...kernels.parts import AdditivePart, LutPart, Part, Scales

LEAST = 0.05                               # of a scale's first value: a scale never reaches zero or changes its sign
MOST_HALF = 60000.0                        # below the largest float16


class TrellisTable(nn.Module):
    """One trellis table that is trained, shared by all parts that name it."""

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.register_buffer("stored", table.detach().clone(), persistent=False)   # int8 [2**window, vector]
        self.unit = float(table.float().square().mean().sqrt()) or 1.0
        self.change = nn.Parameter(torch.zeros(table.shape, device=table.device))

    def rounded(self) -> torch.Tensor:
        """The table as a file would hold it, int8."""
        values = self.stored + self.unit * self.change.detach()
        return values.round_().clamp_(-127, 127).to(torch.int8)

    def keep_in_range(self) -> None:
        """Hold the master where rounding can follow it."""
        stored = self.stored.float()
        self.change.data.clamp_((-127.0 - stored) / self.unit, (127.0 - stored) / self.unit)


class Branch(nn.Module):
    """Masters of a low-rank branch: the weight gets up @ down added."""

    def __init__(self, down: torch.Tensor, up: torch.Tensor):
        super().__init__()
        for name, stored in (("down", down), ("up", up)):                  # float16 [rank, cols], [out, rank]
            self.register_buffer(f"stored_{name}", stored.detach().half().clone(), persistent=False)
            setattr(self, name, _zeros(stored))
        self.units = tuple(max(float(x.float().square().mean().sqrt()), 1e-6) for x in (down, up))

    def now(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(down, up) as a file would hold them, float16."""
        down = self.stored_down.float() + self.units[0] * self.down.detach()
        up = self.stored_up.float() + self.units[1] * self.up.detach()
        return down.clamp(-MOST_HALF, MOST_HALF).half(), up.clamp(-MOST_HALF, MOST_HALF).half()

    def pull_back(self, gradient: torch.Tensor) -> dict[nn.Parameter, torch.Tensor]:
        """Gradient of the whole weight, float32 [out, cols] -> those of the masters."""
        down, up = self.now()
        return {self.down: self.units[0] * (up.float().t() @ gradient),
                self.up: self.units[1] * (gradient @ down.float().t())}


@dataclass(frozen=True)
class Trained:
    """Which parameters are trained. tables: "frozen", "shared" (one for all parts that share one), "layer"."""

    scales: bool = True
    books: bool = True
    tables: str = "shared"
    columns: bool = False                  # add column scales where a part has none
    biases: bool = True
    norms: bool = True
    dense: bool = True
    codes: bool = False                    # some may flip (flips.py)
    rank: int = 0                          # of a low-rank branch that every coded layer gets; 0 = none
    reassign: str = "none"                 # from what product and additive codes are assigned: "frozen", "latent"
    candidates: int = 1                    # entries a group mixes until late in the run (candidates.py)


class PartMasters(nn.Module):
    """Masters of one part (a range of input channels); of `part` nothing but its codes ever changes."""

    def __init__(self, part: Part, trained: Trained, table: TrellisTable | None = None):
        super().__init__()
        if trained.columns and part.scales.col is None:
            ones = torch.ones(part.channels, dtype=torch.float16, device=part.codes.device)
            part = replace(part, scales=replace(part.scales, col=ones))
        self.part, self.table = part, table
        self.gathered: torch.Tensor | None = None      # gradients of the integers added up, where codes may flip
        self.assigned: nn.Module | None = None         # Assigned or Candidates, where codes follow the books
        self.rows = _zeros(part.scales.row) if trained.scales else None
        self.groups = _zeros(part.scales.group) if trained.scales else None
        self.columns = _zeros(part.scales.col) if trained.scales or trained.columns else None
        book = _book(part)
        self.book = _zeros(book) if trained.books and book is not None else None
        self.unit = 1.0 if self.book is None else float(book.float().square().mean().sqrt()) or 1.0

    def now(self) -> Part:
        """The part with its masters rounded to what a file holds."""
        part, scales = self.part, self.part.scales
        row, group, col = (None if stored is None else _scaled(stored, change) for stored, change in (
            (scales.row, self.rows), (scales.group, self.groups), (scales.col, self.columns)))
        gain = scales.gain
        changes = {}
        if self.book is not None:
            stored = _book(part)
            values, step = _rounded_book(stored, stored.float() + self.unit * self.book.detach())
            changes["values" if isinstance(part, LutPart) else "codebooks"] = values
            gain = float(torch.tensor(gain * step, dtype=torch.float32))
        if self.table is not None:
            changes["table"] = self.table.rounded()
        return replace(part, scales=Scales(gain, row, group, scales.group_size, col), **changes)

    def mixture(self) -> nn.Module | None:
        """The candidates, while groups are mixtures of them."""
        return self.assigned if getattr(self.assigned, "hard", True) is False else None

    def decode(self, now: Part, dtype: torch.dtype) -> torch.Tensor:
        """The part's matrix [out, cols]; now: as now() gave it."""
        mixture = self.mixture()
        return decode_part(now, dtype=dtype) if mixture is None else mixture.decode(now, dtype)

    def pull_back(self, gradient: torch.Tensor, weight: torch.Tensor, now: Part) -> dict[nn.Parameter, torch.Tensor]:
        """Gradient of the part's weights, float32 [out, cols], to those of its masters. weight: decoded from `now`."""
        out, rows, taps = {}, gradient.shape[0], self.part.taps
        product = gradient * weight                                        # [out, cols]
        if self.rows is not None:
            out[self.rows] = product.sum(1) / (1 + self.rows.detach())
        if self.groups is not None:
            out[self.groups] = _group_sums(product, self.part.scales.group_size) / (1 + self.groups.detach())
        if self.columns is not None:
            out[self.columns] = product.view(rows * taps, -1).sum(0) / (1 + self.columns.detach())
        if self.book is None and self.table is None and self.gathered is None and self.assigned is None:
            return out
        integers = unrotated_gradient(gradient * scale_matrix(now.scales, gradient, taps), self.part)
        if self.gathered is not None:
            self.gathered += integers
        if self.assigned is not None:
            out.update(self.assigned.pull_back(integers, now))
        if self.book is not None or self.table is not None:
            sums = entry_sums(integers, now) if self.mixture() is None else self.mixture().entry_sums(integers, now)
            if self.book is not None:
                # `now` counts in its own steps, the master in the stored ones: gain * step of one = gain of the other
                out[self.book] = sums * (self.unit * self.part.scales.gain / now.scales.gain)
            else:
                out[self.table.change] = sums * self.table.unit
        return out

    def keep_in_range(self) -> None:
        """Hold scales away from zero and from float16's end."""
        for stored, change in ((self.part.scales.row, self.rows), (self.part.scales.group, self.groups),
                               (self.part.scales.col, self.columns)):
            if change is not None:
                most = (MOST_HALF / stored.float().abs().clamp(min=1e-6)).clamp(min=1.0)
                change.data.clamp_(min=LEAST - 1).copy_(torch.minimum(change.data, most - 1))


def scale_matrix(scales: Scales, like: torch.Tensor, taps: int) -> torch.Tensor:
    """What integers are multiplied with, float32, broadcastable to [out, cols]."""
    if scales.row is not None:
        s = (scales.row.float() * scales.gain)[:, None]
    elif scales.group is not None:
        s = (scales.group.float() * scales.gain).repeat_interleave(scales.group_size, 1)[:, :like.shape[1]]
    else:
        s = like.new_tensor(scales.gain)
    return s if scales.col is None else s * scales.col.float().repeat(taps)


def _book(part: Part) -> torch.Tensor | None:
    if isinstance(part, AdditivePart):
        return part.codebooks
    return part.values if isinstance(part, LutPart) else None


def _rounded_book(stored: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Integers, int16, and the step between them; the largest stays what it was, so sums stay exact."""
    peak, wanted = float(values.abs().max()), float(stored.abs().max())
    step = peak / wanted if peak > 0 and wanted > 0 else 1.0
    return (values / step).round_().to(torch.int16), step


def _zeros(like: torch.Tensor | None) -> nn.Parameter | None:
    return None if like is None else nn.Parameter(torch.zeros(like.shape, device=like.device))


def _scaled(stored: torch.Tensor, change: torch.Tensor | None) -> torch.Tensor:
    return stored if change is None else (stored.float() * (1 + change.detach())).half()


def _group_sums(product: torch.Tensor, size: int) -> torch.Tensor:
    """[out, cols] -> sums over groups of `size` columns [out, groups]."""
    rows, cols = product.shape
    groups = -(-cols // size)
    return torch.nn.functional.pad(product, (0, groups * size - cols)).view(rows, groups, size).sum(2)
