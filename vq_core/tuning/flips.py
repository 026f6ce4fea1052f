"""Code flips: a few groups of codes a time follow the gradient, and stay flipped only where the loss falls.

After PV-Tuning (arXiv 2405.14852), which moves a buffer beside every weight and codes the groups again that strayed
furthest. Here the gradient of the decoded integers is added up over some steps, a group's target is one damped step
down from where it is, and the group is coded again for this target: of trellis codes short windows of the sequences by
Viterbi (rewindow.py), of all others the nearest entry or a small beam (regroup.py). What was gathered is dropped after
each flip, so nothing remembers a weight's old value (AQ thesis: moments are reset); the moments that remain belong to
scales, entries and tables, which all weights of a row, book or rate share.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .groups import coder, integers_of
from .masters import PartMasters
from .student import Student

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
        self.parts: list[PartMasters] = [part for layer in student.layers.values() for part in layer.parts]
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
        groups = sum(coder(part.part).count(part.part) for part in parts)
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
        """The groups of all parts that gain most -> (part, (places, codes))"""
        coders = [coder(part.part) for part in parts]
        places = [code.places(part.part, round_) for code, part in zip(coders, parts, strict=True)]
        wishes = [_wish(part, self.step) for part in parts]
        hopes = [code.sums(moved.square() * curvature, part.part, place) for code, part, place, (moved, curvature)
                 in zip(coders, parts, places, wishes, strict=True)]
        found, gains = [], []
        for code, part, place, wish, mask in zip(coders, parts, places, wishes, _largest(hopes, TRIED * most),
                                                 strict=True):
            some, (moved, curvature), now = code.picked(place, mask), wish, part.now()
            codes, gain = code.recode(now, integers_of(now) + moved, some)
            found.append((part, some, codes))
            gains.append(gain * code.sums(curvature, now, some) / code.covered(now))
        chosen = []
        for code, (part, some, codes), mask in zip(coders, found, _largest(gains, most), strict=True):
            mask = mask & code.differs(part.part, some, codes)
            chosen.append((part, (code.picked(some, mask), codes[mask])))
        return chosen


def _wish(part: PartMasters, step: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Where integers would like to move to, and the curvature that was assumed for it, both [out, cols].

    The curvature is such that a usual gradient of a row and column asks for `step` times the usual error of the code.
    With one curvature for a layer the few weights of large inputs were thrown far away: 59 of 400128 groups flipped
    made the testbed's held-out error 18 % larger.
    """
    gradient = part.gathered
    squares = gradient.square()
    total = squares.mean().sqrt()
    error = coder(part.part).error(part.part, integers_of(part.part))
    if not float(total) > 0 or not error > 0:
        return torch.zeros_like(gradient), torch.zeros_like(gradient)
    usual = squares.mean(1, keepdim=True).sqrt() * squares.mean(0, keepdim=True).sqrt() / total
    curvature = usual.clamp(min=float(total) * 1e-3) / (step * error)
    return (-gradient / curvature).clamp(-FARTHEST * error, FARTHEST * error), curvature


def _largest(values: list[torch.Tensor], most: int) -> list[torch.Tensor]:
    """Masks of at most `most` of all values, the largest, those above zero."""
    together = torch.cat(values) if values else torch.zeros(0)
    mask = torch.zeros(len(together), dtype=torch.bool)
    best = together.argsort(descending=True, stable=True)[:most]
    mask[best] = together[best] > 0
    return list(mask.split([len(value) for value in values]))


def _apply(part: PartMasters, places, codes: torch.Tensor) -> int:
    """Flip -> how many groups."""
    if len(codes):
        part.part = replace(part.part, codes=coder(part.part).replaced(part.part, places, codes))
    return len(codes)
