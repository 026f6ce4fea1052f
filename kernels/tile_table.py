"""Owns how large the Triton kernels' tiles are on each architecture: data, looked up by name, never searched for.

Nothing here has been tuned on a GPU yet. The sizes are those that compile without spilling registers on their targets
(benchmarks/results/compile_check.txt) and give each thread 32 weights, enough to share the addresses.
"""
from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tiles:
    """Sizes for one architecture."""

    rows: int = 16            # of a lut or additive tile; a trellis tile is a unit, 32 or 64 rows
    cols: int = 128           # of trellis tiles and rotated ones: the largest Hadamard block that a kernel undoes
    wide_cols: int = 256      # of lut and additive tiles that are not rotated
    walk: int = 4             # rotated tiles a program walks down: their matrix is 16 KB to load
    warps: int = 4
    linear_rows: int = 32     # of the weight, in a fused product (trellis: a unit)
    linear_cols: int = 64     # of the weight, at a time
    linear_tokens: int = 128  # rows of x that share a decoded tile
    linear_warps: int = 4     # for every 64 rows of x; fewer rows take `warps`
    int8_tokens: int = 128    # of the product of int8 matrices
    int8_rows: int = 128
    int8_cols: int = 64
    int8_warps: int = 8
    rounding_warps: int = 4   # for 16 tokens of x and a matrix of 128


# First prefix that fits. gfx11 has half the registers for a product's sums: 128 x 128 tiles of fp16 spilled 163 there.
# sm_120: palettes spilled at four warps.
TABLE = (
    ("sm_12", Tiles(linear_warps=8)),
    ("gfx11", Tiles(linear_tokens=64, rounding_warps=8)),
    ("gfx9", Tiles(linear_tokens=64)),
    ("", Tiles()),
)


def tiles(architecture: str) -> Tiles:
    """The row of the table for sm_80, gfx1100 and so on."""
    return next(found for prefix, found in TABLE if architecture.startswith(prefix))


@functools.cache
def architecture(device: torch.device) -> str:
    """sm_89, gfx1100; cpu where kernels are interpreted."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors, which a launch should fill; 1 where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
