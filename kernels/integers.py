"""Owns what a part's integers can be: the range its tables allow, and so whether int8 holds them."""
from __future__ import annotations

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from .parts import AdditivePart, LutPart, Part

_found: dict[str, WeakTensorKeyDictionary] = {}


def int8_refusal(part: Part) -> str | None:
    """Why the integers of a part (before scales and rotation) may leave int8; None where every code stays inside."""
    low, high = integer_range(part)
    if -128 <= low and high <= 127:
        return None
    return f"its integers reach from {low} to {high}, int8 holds -128 to 127"


def integer_range(part: Part) -> tuple[int, int]:
    """Smallest and largest integer that any codes could stand for (before the rotation is undone).

    Asks the tables once each, which on a GPU waits for it; a table that is kept must not change in place.
    """
    if isinstance(part, LutPart):
        if part.values is not None:
            return _kept("values", part.values, _ends)
        low, high = _kept("zero_points", part.zero_points, _ends)
        return -high, 2**part.bits - 1 - low
    if isinstance(part, AdditivePart):
        size = "short" if part.codebooks.shape[2] < 2**part.bits else "full"
        return _kept(size, part.codebooks, _sums)
    return -128, 127                                        # a trellis table is int8


def _kept(kind: str, tensor: torch.Tensor, ask) -> tuple[int, int]:
    known = _found.setdefault(kind, WeakTensorKeyDictionary())
    if tensor not in known:
        known[tensor] = ask(tensor, kind)
    return known[tensor]


def _ends(tensor: torch.Tensor, _kind: str) -> tuple[int, int]:
    low, high = torch.aminmax(tensor)
    return int(low), int(high)


def _sums(codebooks: torch.Tensor, kind: str) -> tuple[int, int]:
    """Of one entry from each book of a block: [blocks, M, K, g] -> the extremes over blocks and lanes."""
    low, high = codebooks.amin(2).int(), codebooks.amax(2).int()            # [blocks, M, g]
    if kind == "short":                                                     # a code beyond the book means zero
        low, high = low.clamp(max=0), high.clamp(min=0)
    return int(low.sum(1).min()), int(high.sum(1).max())
