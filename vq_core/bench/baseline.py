"""What others do for the same layer: a block format unpacked by torch operations in each call, as GGUF loaders do it.

Written from the format's description (ggml Q4_0: blocks of 32 weights, one fp16 scale, 4-bit codes minus 8), to compare
the way of working, not the code of anyone.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch

BLOCK = 32


@dataclass(frozen=True)
class Blocks:
    """A weight in blocks of 32; 4.5 bits a weight."""

    scales: torch.Tensor                   # float16 [blocks, 1]
    codes: torch.Tensor                    # uint8 [blocks, 16]: low halves are weights 0 to 15, high ones 16 to 31
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.scales.nbytes + self.codes.nbytes

    def decode(self, dtype: torch.dtype) -> torch.Tensor:
        """-> [*shape] in dtype, by six torch operations over tensors of the weight's size"""
        shifts = torch.tensor([0, 4], dtype=torch.uint8, device=self.codes.device).view(1, 2, 1)
        halves = (self.codes.unsqueeze(1) >> shifts) & 15                           # [blocks, 2, 16]
        integers = halves.view(len(self.codes), BLOCK).to(torch.int8) - 8           # [blocks, 32]
        return (self.scales.to(dtype) * integers.to(dtype)).view(self.shape)


def random_blocks(shape: tuple[int, ...], device: str, seed: int = 0) -> Blocks:
    """Random codes; the number of weights must be a multiple of 32."""
    generator = torch.Generator().manual_seed(seed)
    blocks = math.prod(shape) // BLOCK
    codes = torch.randint(0, 256, (blocks, BLOCK // 2), dtype=torch.uint8, generator=generator)
    scales = torch.full((blocks, 1), 0.25 / math.sqrt(math.prod(shape[1:])), dtype=torch.float16)
    return Blocks(scales.to(device), codes.to(device), shape)
