"""Coding single groups again where no group sees another one's bits: additive and product vectors, scalar codes.

A group of additive and product codes is what one set of codes decodes to; of palette and uniform codes one weight.
The functions are those of rewindow.py. A place is a group's number: row * groups of a row + group of columns.
"""
from __future__ import annotations

import torch

from ...kernels.gradients import book_ranges, grouped
from ...kernels.packing import pack_codes, unpack_codes
from ...kernels.parts import AdditivePart, LutPart
from ..encode.assign import assign

Plain = AdditivePart | LutPart


def count(part: Plain) -> int:
    """Groups of a part."""
    return part.out_features * _per_row(part)


def places(part: Plain, turn: int) -> torch.Tensor:
    """All groups, int64 [n]; `turn` says nothing here."""
    return torch.arange(count(part))


def picked(chosen: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Some of the places."""
    return chosen[mask]


def covered(part: Plain) -> int:
    """Weights of one group."""
    return part.group if isinstance(part, AdditivePart) else 1


def sums(values: torch.Tensor, part: Plain, chosen: torch.Tensor) -> torch.Tensor:
    """Sums of values [out, cols] over groups, float32 [n] on the CPU."""
    each = grouped(values, part).sum(2) if isinstance(part, AdditivePart) else values
    return each.flatten()[chosen.to(values.device)].cpu()


def error(part: Plain, integers: torch.Tensor) -> float:
    """Usual coding error of an integer: of a level, that of evenly spread ones; else their root mean square, halved
    with every bit a weight. A level's neighbor is nearer from 1.73 of the former on.
    """
    if isinstance(part, AdditivePart):
        bits = part.bits * part.codebooks.shape[1] / part.group
        return float(integers.square().mean().sqrt()) * 2.0**-bits
    gap = 1.0 if part.values is None else (int(part.values.max()) - int(part.values.min())) / (2**part.bits - 1)
    return gap / 12**0.5


def recode(part: Plain, targets: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of chosen groups for targets, float32 [out, cols] in integers.

    -> codes, int64 [n, codes of a group]; and by how much the squared error falls, float32 [n], never below 0.
    """
    if not len(chosen):
        return torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0)
    chosen = chosen.to(targets.device)
    old = _codes(part).view(count(part), -1)[chosen]                   # [n, M]
    wanted, levels = _wanted(part, targets, chosen)
    new, gain = old.clone(), wanted.new_zeros(len(chosen))
    place = chosen % _per_row(part)                                    # group of columns
    for block, first, stop, width in _ranges(part):
        mine = ((place >= first) & (place < stop)).nonzero()[:, 0]
        if len(mine):
            some, books = wanted[mine, :width], levels[block, ..., :width]
            found = assign(some, books, old[mine])
            gain[mine] = _errors(books, some, old[mine]) - _errors(books, some, found)
            new[mine] = found.to(new)
    return torch.where(gain[:, None] > 0, new, old).cpu(), gain.clamp(min=0).cpu()


def differs(part: Plain, chosen: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Which of the groups have other codes now, bool [n]."""
    return (_codes(part).view(count(part), -1).cpu()[chosen] != codes).any(1)


def replaced(part: Plain, chosen: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The part's packed codes with the chosen groups' codes, int64 [n, codes of a group], in place of theirs."""
    found = _codes(part)
    found.view(count(part), -1)[chosen.to(found.device)] = codes.to(found)
    return pack_codes(found, part.bits)


def changed(old: Plain, new: Plain) -> int:
    """Groups whose codes differ."""
    return int((_codes(old) != _codes(new)).view(count(old), -1).any(1).sum())


def _per_row(part: Plain) -> int:
    return -(-part.channels * part.taps // covered(part))


def _codes(part: Plain) -> torch.Tensor:
    """int32 [out, groups of a row * codes of a group]"""
    together = part.codebooks.shape[1] if isinstance(part, AdditivePart) else 1
    return unpack_codes(part.codes, part.bits, _per_row(part) * together).contiguous()


def _ranges(part: Plain) -> list[tuple[int, int, int, int]]:
    """As book_ranges; scalar codes have one book."""
    return book_ranges(part) if isinstance(part, AdditivePart) else [(0, 0, _per_row(part), 1)]


def _wanted(part: Plain, targets: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-> targets of the groups [n, g], and books they are coded with, float32 [blocks, M, K, g]"""
    if isinstance(part, AdditivePart):
        return grouped(targets, part).flatten(0, 1)[chosen], part.codebooks.float()
    wanted = targets.flatten()[chosen]
    if part.values is not None:
        return wanted[:, None], part.values.float().view(1, 1, -1, 1)
    return (wanted + _zero_points(part, chosen))[:, None], torch.arange(
        2.0**part.bits, device=targets.device).view(1, 1, -1, 1)


def _zero_points(part: LutPart, chosen: torch.Tensor) -> torch.Tensor:
    zeros, cols = part.zero_points.float().view(part.out_features, -1), part.channels * part.taps
    row, col = chosen // cols, chosen % cols
    return zeros[row, col // part.scales.group_size] if zeros.shape[1] > 1 else zeros[row, 0]


def _errors(books: torch.Tensor, wanted: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Squared error of groups wanted [n, g] with codes [n, M] in books [M, K, g] -> [n]"""
    padded = torch.nn.functional.pad(books, (0, 0, 0, 1))              # a code without an entry decodes to zero
    decoded = sum(book[code.long().clamp(max=books.shape[1])] for book, code in zip(padded, codes.T, strict=True))
    return (wanted - decoded).square().sum(1)
