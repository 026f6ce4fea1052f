"""The toy that calibrated encoders are measured on: correlated inputs of uneven magnitude, rows of uneven size."""
from __future__ import annotations

import math

import torch

# Neighboring channels (before a shuffle) correlate by .7, magnitudes are log-normal (sigma .5), row sizes too (.3):
# GPTQ on 1280 x 640 and 4096 inputs then loses .089, .0206 and .0057 of the outputs at 2, 3 and 4 bits.
CORRELATION, MAGNITUDE, ROW_SIZE = 0.7, 0.5, 0.3


def weights(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    """float32 [rows, cols]"""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator) * \
        torch.exp(ROW_SIZE * torch.randn(rows, 1, generator=generator))


def inputs(cols: int, count: int, seed: int) -> torch.Tensor:
    """float32 [count, cols] of one distribution for every seed."""
    fixed, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1000 + seed)
    order = torch.randperm(cols, generator=fixed)
    size = torch.exp(MAGNITUDE * torch.randn(cols, generator=fixed))
    x = torch.randn(cols, count, generator=own)
    for i in range(1, cols):
        x[i] = CORRELATION * x[i - 1] + math.sqrt(1 - CORRELATION**2) * x[i]
    return x[order].t() * size


def gram(x: torch.Tensor) -> torch.Tensor:
    """[count, cols] -> [1, cols, cols]"""
    return (x.t() @ x)[None] / len(x)
