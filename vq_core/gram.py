"""The gram of a layer's inputs: which directions of its weights the outputs see. Encoders weigh errors with it."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from .errors import PlanError


@dataclass(frozen=True)
class Gram:
    """Mean of x xᵀ over the inputs x of one layer, in the column order of the coded matrix (`encode.to_matrix`).

    blocks: float32 [n, size, size], a block-diagonal matrix of n * size = taps * channels columns: n = 1 is the whole
    gram, n = taps one gram a kernel tap, which leaves out what neighboring pixels have in common (docs/calibration.md).
    held_out: the same of other inputs, by which damping is chosen. Counts are numbers of input vectors.
    """

    blocks: torch.Tensor
    count: int
    held_out: torch.Tensor | None = None
    held_out_count: int = 0

    def __post_init__(self):
        shapes = [tuple(b.shape) for b in (self.blocks, self.held_out) if b is not None]
        if len(shapes[0]) != 3 or shapes[0][1] != shapes[0][2] or len(set(shapes)) > 1:
            raise PlanError(f"a gram must be [blocks, size, size], the held-out one alike, got {shapes}")

    @property
    def columns(self) -> int:
        """Columns of the matrix it belongs to."""
        return self.blocks.shape[0] * self.blocks.shape[1]

    def split(self, start: int, stop: int, channels: int) -> Gram:
        """The gram of input channels start..stop of `channels`, at every kernel tap."""
        if (start, stop) == (0, channels):
            return self
        size = self.blocks.shape[1]
        chosen = torch.cat([torch.arange(start, stop) + first for first in range(0, size, channels)])
        held_out = None if self.held_out is None else self.held_out[:, chosen][:, :, chosen]
        return Gram(self.blocks[:, chosen][:, :, chosen], self.count, held_out, self.held_out_count)

    def all_inputs(self) -> torch.Tensor:
        """The mean over both sets of inputs, float64 [n, size, size]."""
        if self.held_out is None or not self.held_out_count:
            return self.blocks.double()
        total = self.count + self.held_out_count
        return (self.blocks.double() * self.count + self.held_out.double() * self.held_out_count) / total


def inner(a: torch.Tensor, b: torch.Tensor, blocks: torch.Tensor, rows: int = 1024) -> torch.Tensor:
    """a gram bᵀ of each pair of rows: float [rows, cols] twice -> float64 [rows], computed in chunks of rows."""
    n, size, _ = blocks.shape
    sums = []
    for some, other in zip(a.split(rows), b.split(rows), strict=True):
        left = some.reshape(-1, n, size).transpose(0, 1).to(blocks.dtype) @ blocks  # [n, rows, size]
        sums.append((left.double() * other.reshape(-1, n, size).transpose(0, 1)).sum((0, 2)))
    return torch.cat(sums)


def output_error(lost: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Mean squared change of each output for an error of the weights: lost [rows, cols] -> float64 [rows].

    Their sum is tr(D G Dᵀ) (VQDM, arXiv 2409.00492, section 3.2).
    """
    return inner(lost, lost, blocks)
