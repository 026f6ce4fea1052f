"""Code flips: a few groups of trellis codes a time follow the gradient, and stay flipped only where the loss falls.

After PV-Tuning (arXiv 2405.14852), which moves a buffer beside every weight and codes the groups again that strayed
furthest. Here the gradient of the decoded integers is added up over some steps, a group's target is one damped step
down from where it is, and Viterbi codes short windows of the sequences for these targets (rewindow.py). What was
gathered is dropped after each flip, so nothing remembers a weight's old value (AQ thesis: moments are reset).
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ...kernels.dispatch import decode_part
from ...kernels.packing import UNIT_STEPS, unpack_trellis
from ...kernels.parts import Scales, TrellisPart
from .masters import PartMasters
from .rewindow import Windows, count, possible, recode, replaced
from .student import Student

WINDOW = 16                                # steps coded again together: one group
GATHERED_BYTES = 1 << 30                   # of gradients; a larger model's layers take turns
TRIED = 2                                  # times the groups that may flip are coded to find the best
LEAST_STEP, MOST_STEP = 1 / 64, 4.0        # of a target, in root mean square coding errors
FARTHEST = 2.0                             # a weight's wish, in the same
FIRST_STEP, GROW, SHRINK = 1.0, 1.2, 0.5


@dataclass(frozen=True)
class Flips:
    """What one attempt did."""

    groups: int                            # that could have flipped
    flipped: int
    before: float                          # loss of the judging calls
    after: float

    @property
    def kept(self) -> bool:
        """Whether the loss fell."""
        return self.after < self.before


class Flipper:
    """Gathers gradients in the layers whose turn it is and flips at most `fraction` of their groups."""

    def __init__(self, student: Student, fraction: float, step: float = FIRST_STEP):
        self.fraction, self.step = fraction, step
        self.parts: list[PartMasters] = [part for layer in student.layers.values() for part in layer.parts
                                         if isinstance(part.part, TrellisPart)]
        weights = sum(part.part.out_features * part.part.channels * part.part.taps for part in self.parts)
        self.turns = max(1, -(-4 * weights // GATHERED_BYTES))

    def turn(self, number: int) -> list[PartMasters]:
        """The parts of one turn."""
        return self.parts[number % self.turns::self.turns]

    def gather(self, number: int) -> None:
        """Begin to add up gradients for a turn."""
        for part in self.parts:
            part.gathered = None
        for part in self.turn(number):
            part.gathered = torch.zeros(part.part.out_features, part.part.channels * part.part.taps,
                                        device=part.part.codes.device)

    def flip(self, number: int, judge: Callable[[], float]) -> Flips:
        """Flip for what was gathered; undone where judge(), a loss, does not fall. A turn of no gradient flips none."""
        parts = self.turn(number)
        groups = sum(count(part.part, WINDOW) for part in parts)
        chosen = self._choose(parts, number // self.turns, int(self.fraction * groups))
        before, kept = judge(), [part.part for part in parts]
        flipped = sum(_apply(part, *change) for part, change in chosen)
        after = judge() if flipped else before
        if after < before:
            self.step = min(MOST_STEP, self.step * GROW)
        else:
            self.step = max(LEAST_STEP, self.step * SHRINK)
            for part, old in zip(parts, kept, strict=True):
                part.part = old
        return Flips(groups, flipped if after < before else 0, before, after)

    def _choose(self, parts: list[PartMasters], round_: int, most: int) -> list[tuple[PartMasters, tuple]]:
        """The windows of all parts that gain most -> (part, (windows, codes))"""
        places = [possible(part.part, WINDOW, WINDOW * (round_ % 2)) for part in parts]
        wishes = [_wish(part, self.step) for part in parts]
        hopes = [_sums(moved.square() * curvature, place, part.part.vector)
                 for part, place, (moved, curvature) in zip(parts, places, wishes, strict=True)]
        tried = _largest(hopes, TRIED * most)
        found, gains = [], []
        for part, place, (moved, curvature), mask in zip(parts, places, wishes, tried, strict=True):
            some = Windows(place.columns[mask], place.first[mask], WINDOW)
            now = part.now()
            targets = decode_part(replace(now, rotation=0, scales=Scales(1.0))) + moved
            codes, gain = recode(now, targets, some)
            found.append((part, some, codes))
            gains.append(gain * _sums(curvature, some, now.vector) / (WINDOW * now.vector))
        chosen = []
        for (part, some, codes), mask in zip(found, _largest(gains, most), strict=True):
            mask = mask & _differs(part.part, some, codes)
            chosen.append((part, (Windows(some.columns[mask], some.first[mask], WINDOW), codes[mask])))
        return chosen


def _wish(part: PartMasters, step: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Where integers would like to move to, and the curvature that was assumed for it, both [out, cols].

    The curvature is such that a usual gradient of a row and column asks for `step` times the usual error of the code.
    With one curvature for a layer the few weights of large inputs were thrown far away: 59 of 400128 groups flipped
    made the testbed's held-out error 18 % larger.
    """
    gradient, stored = part.gathered, part.part
    squares = gradient.square()
    total = squares.mean().sqrt()
    error = float(stored.table.float().square().mean().sqrt()) * 2.0 ** (-stored.step_bits / stored.vector)
    if not float(total) > 0:
        return torch.zeros_like(gradient), torch.zeros_like(gradient)
    usual = squares.mean(1, keepdim=True).sqrt() * squares.mean(0, keepdim=True).sqrt() / total
    curvature = usual.clamp(min=float(total) * 1e-3) / (step * error)
    return (-gradient / curvature).clamp(-FARTHEST * error, FARTHEST * error), curvature


def _sums(values: torch.Tensor, windows: Windows, vector: int) -> torch.Tensor:
    """Sums of values [out, cols] over windows, float32 [n] on the CPU."""
    rows = windows.first[:, None] * vector + torch.arange(windows.steps * vector)
    return values[rows.to(values.device), windows.columns[:, None].to(values.device)].sum(1).cpu()


def _largest(values: list[torch.Tensor], most: int) -> list[torch.Tensor]:
    """Masks of at most `most` of all values, the largest, those above zero."""
    together = torch.cat(values) if values else torch.zeros(0)
    mask = torch.zeros(len(together), dtype=torch.bool)
    best = together.argsort(descending=True, stable=True)[:most]
    mask[best] = together[best] > 0
    return list(mask.split([len(value) for value in values]))


def _differs(part: TrellisPart, windows: Windows, codes: torch.Tensor) -> torch.Tensor:
    steps = unpack_trellis(part.codes, part.step_bits, part.codes.shape[0] * UNIT_STEPS).cpu()
    rows = windows.first[:, None] + torch.arange(windows.steps)
    return (steps[rows, windows.columns[:, None]] != codes).any(1)


def _apply(part: PartMasters, windows: Windows, codes: torch.Tensor) -> int:
    """Flip -> how many groups."""
    if len(codes):
        part.part = replace(part.part, codes=replaced(part.part, windows, codes))
    return len(codes)
