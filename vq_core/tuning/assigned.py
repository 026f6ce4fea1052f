"""Groups of product and additive codes: their vectors, their codes, and what they are assigned from while tuning.

DPQ (arXiv 2411.12306) assigns in the forward pass, against the books as they are. Between two steps books do not move,
so once after every step is the same: decoders, the books' exact gradient (a gather) and the file see ordinary codes.
"""
from __future__ import annotations

import torch
from torch import nn

from ...kernels.gradients import book_of_groups, book_ranges, grouped, unrotated_gradient
from ...kernels.packing import pack_codes, unpack_codes
from ...kernels.parts import AdditivePart
from ..encode.assign import assign
from .groups import integers_of
from .masters import scale_matrix


class Assigned(nn.Module):
    """What the groups of one part are assigned from: `wanted`, the part of the teacher's weight the codes stand for.

    latent: with a trained change of it, in units of the book, that gets the gradient of the decoded groups straight
    through. It begins where no code changes: at 0, or, where another entry is nearer (as in files coded for their
    outputs), at what is missing to the own one. Without, assignments move because books and scales do.
    """

    def __init__(self, part: AdditivePart, wanted: torch.Tensor, latent: bool):
        super().__init__()
        self.register_buffer("wanted", wanted, persistent=False)           # [out, cols], the teacher's dtype
        self.step = rms(part.codebooks) * part.scales.gain                 # over a gain: a latent of 1 in integers
        self.trained: nn.Parameter | None = None
        if latent:
            self.trained = nn.Parameter(self._beginning(part))             # [out, groups, group]

    def vectors(self, now: AdditivePart, branch: torch.Tensor | None = None) -> torch.Tensor:
        """What is assigned, in integers of `now`, [out, groups, group]. branch: [out, cols], added to the codes."""
        wanted = self.wanted.float() if branch is None else self.wanted.float() - branch
        found = over_scales(wanted, now)
        return found if self.trained is None else found + self.step / now.scales.gain * self.trained.detach()

    def codes(self, now: AdditivePart, branch: torch.Tensor | None = None) -> torch.Tensor:
        """Assignments to the books of `now`, int64 [out, groups, M]; rows that are multiplied with 0 keep theirs."""
        old = codes_of(now)
        found = assign_groups(self.vectors(now, branch), now, old)
        return found if now.scales.row is None else torch.where((now.scales.row == 0)[:, None, None], old, found)

    def pull_back(self, integers: torch.Tensor, now: AdditivePart) -> dict[nn.Parameter, torch.Tensor]:
        """Straight through: gradient of the decoded integers [out, cols] -> that of the latent."""
        return {} if self.trained is None else {self.trained: self.step / now.scales.gain * grouped(integers, now)}

    def _beginning(self, part: AdditivePart) -> torch.Tensor:
        kept = (self.codes(part) == codes_of(part)).all(2, keepdim=True)   # [out, groups, 1]
        missing = grouped(integers_of(part), part) - self.vectors(part)    # [out, groups, group]
        return torch.where(kept, 0.0, missing * (part.scales.gain / self.step))


def over_scales(matrix: torch.Tensor, part: AdditivePart) -> torch.Tensor:
    """Weights [out, cols] as the groups that are coded, in integers of the part [out, groups, group]."""
    scales = scale_matrix(part.scales, matrix, part.taps)
    inverse = torch.where(scales == 0, 0.0, 1 / torch.where(scales == 0, 1.0, scales))
    integers = unrotated_gradient(matrix * inverse, part)              # the transpose, `rotation` times the inverse
    return grouped(integers / max(1, part.rotation), part)


def assign_groups(vectors: torch.Tensor, part: AdditivePart, old: torch.Tensor) -> torch.Tensor:
    """Vectors [out, groups, group] -> codes int64 [out, groups, M] for the part's books; old: its codes."""
    books, found = part.codebooks.float(), torch.empty_like(old)
    for block, first, stop, width in book_ranges(part):
        some = assign(vectors[:, first:stop, :width].flatten(0, 1), books[block, ..., :width],
                      old[:, first:stop].flatten(0, 1))
        found[:, first:stop] = some.view(len(vectors), stop - first, -1)
    return found


def codes_of(part: AdditivePart) -> torch.Tensor:
    """A part's codes, int64 [out, groups, M]."""
    groups, num_codebooks = len(book_of_groups(part)), part.codebooks.shape[1]
    return unpack_codes(part.codes, part.bits, groups * num_codebooks).view(-1, groups, num_codebooks).long()


def packed(part: AdditivePart, codes: torch.Tensor) -> torch.Tensor:
    """Codes [out, groups, M] as the part holds them."""
    return pack_codes(codes.flatten(1).to(torch.int32), part.bits)


def rms(values: torch.Tensor) -> float:
    """Root mean square, 1 for zeros."""
    return float(values.float().square().mean().sqrt()) or 1.0
