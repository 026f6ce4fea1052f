"""Input channels as a layer's codes see them: a part's column scales and rotation, moved from weight to input."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.parts import Part
from ...kernels.rotation import rotate, signs, unrotate


@dataclass(frozen=True, eq=False)
class CodedRange:
    """Input channels start..stop of a layer that are coded as one part.

    With W = C R diag(columns) / sqrt(block), C the decoded codes and R = H diag(signs) the part's rotation,
    W x = C into(x).
    """

    start: int
    stop: int
    block: int = 0                         # of the rotation, 0 = none
    signs: torch.Tensor | None = None      # int8 [channels]
    columns: torch.Tensor | None = None    # float32 [channels], never 0

    def into(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [..., channels] of this range -> what multiplies the codes."""
        if self.columns is not None:
            x = x * self.columns.to(x.device)
        return _turned(rotate, x, self)

    def back(self, v: torch.Tensor) -> torch.Tensor:
        """Inverse of into."""
        x = _turned(unrotate, v, self)
        return x if self.columns is None else x / self.columns.to(x.device)


def coded_range(start: int, stop: int, part: Part) -> CodedRange:
    """The range of one part."""
    flips = signs(part.rotation_seed, part.channels) if part.rotation else None
    columns = None if part.scales.col is None else part.scales.col.float().cpu()
    if columns is not None:
        columns = torch.where(columns == 0, 1.0, columns)      # such a column multiplies nothing
    return CodedRange(start, stop, part.rotation, flips, columns)


def _turned(turn, x: torch.Tensor, own: CodedRange) -> torch.Tensor:
    if not own.block:
        return x
    flat = turn(x.reshape(-1, x.shape[-1]), own.block, own.signs.to(x.device))
    return flat.view(x.shape) / own.block**0.5
