"""What a call costs, counted: operations and bytes of matmul, decoding and LoRA, and the memory a sampling takes.

Formulas only. They choose between two right ways to compute the same thing and rank layers; what is fast is measured by
`vqpack bench`. An operation is a multiply or an add; a traffic byte is one read from or written to memory.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .layout import ADDITIVE, Layout

# Operations a device does while it moves one byte: fp16 peak over bandwidth from data sheets. H200 184, RTX 4090 164,
# RTX 3060 142, with fp32 accumulation; a CPU core with AVX-512 about 10. No measurement stands behind the two.
OPERATIONS_PER_BYTE = {"cpu": 10}
ACCELERATOR_OPERATIONS_PER_BYTE = 150
# A launch costs as much as decoding so many weights: 2.5 us at 1e11 weights a second.
LAUNCH_WEIGHTS = 250_000
# Decoding a weight, in units of an unrotated trellis weight (197 M/s on two CPU cores at 3 bits, 138 with rotation:
# benchmarks/results/decode_cpu.json); each book of an additive code is a lookup.
ROTATION = 0.4
BRANCH_OPERATIONS_PER_WEIGHT = 100         # of a low-rank branch's product that take as long as decoding one weight


@dataclass(frozen=True)
class Cost:
    """Operations and traffic of one computation."""

    operations: int
    traffic: int                           # bytes

    def on(self, device_type: str) -> float:
        """Both in operations, as a device of this type does them."""
        return self.operations + self.traffic * OPERATIONS_PER_BYTE.get(device_type, ACCELERATOR_OPERATIONS_PER_BYTE)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.operations + other.operations, self.traffic + other.traffic)


def matmul(rows: int, inner: int, cols: int, itemsize: int = 2) -> Cost:
    """[rows, inner] x [inner, cols], each matrix read or written once."""
    return Cost(2 * rows * inner * cols, itemsize * (rows * inner + inner * cols + rows * cols))


def linear(tokens: int, out_features: int, in_features: int, itemsize: int = 2) -> Cost:
    """A Linear layer on `tokens` rows."""
    return matmul(tokens, in_features, out_features, itemsize)


def lora_beside(tokens: int, out_features: int, in_features: int, rank: int, itemsize: int = 2) -> Cost:
    """y += s (x down^T) up^T: 2 tokens rank (in + out) operations; y is read once more than it is written."""
    down, up = matmul(tokens, in_features, rank, itemsize), matmul(tokens, rank, out_features, itemsize)
    return down + up + Cost(0, itemsize * tokens * out_features)


def lora_onto(out_features: int, in_features: int, rank: int, itemsize: int = 2) -> Cost:
    """W += s (up down) as ComfyUI does it: 2 out in rank operations, then scale and add.

    Traffic in weights: the product written; read and written by the scaling; both read, the sum written.
    """
    weights = out_features * in_features
    return matmul(out_features, rank, in_features, itemsize) + Cost(3 * weights, itemsize * 5 * weights)


def kron_beside(tokens: int, first: tuple[int, int], second: tuple[int, int], itemsize: int = 2) -> Cost:
    """y += s x (A kron B)^T with A [a, b], B [c, d]: b small products with B, then a x b combinations of them."""
    (a, b), (c, d) = first, second
    inner, outer = matmul(tokens * b, d, c, itemsize), matmul(tokens * c, b, a, itemsize)
    return inner + outer + Cost(0, itemsize * tokens * a * c)


def kron_onto(first: tuple[int, int], second: tuple[int, int], itemsize: int = 2) -> Cost:
    """W += s (A kron B): the product written, scaled, added."""
    weights = first[0] * first[1] * second[0] * second[1]
    return Cost(3 * weights, itemsize * 6 * weights)


def decoding(layout: Layout) -> float:
    """Cost of decoding a weight once, in units of one unrotated trellis weight; a launch for each part."""
    total = 0.0
    for head in layout.parts:
        weights = layout.shape[0] * layout.taps * head.channels
        lookups = head.num_codebooks if head.family == ADDITIVE else 1
        total += LAUNCH_WEIGHTS + weights * (lookups + (ROTATION if head.rotation else 0))
    if layout.rank:
        total += LAUNCH_WEIGHTS + 2 * layout.rank * weights_of(layout) / BRANCH_OPERATIONS_PER_WEIGHT
    return total


def weights_of(layout: Layout) -> int:
    """Number of weights."""
    return layout.shape[0] * layout.shape[1] * layout.taps


def worth_keeping(weights: Iterable[tuple[str, Layout, int]], budget: int) -> list[str]:
    """Which of (name, layout, bytes of a decoded element) to keep decoded within a budget of bytes.

    The dearest to decode for each byte kept come first: small layers, for a launch costs as much whatever it decodes.
    Ties keep the given order.
    """
    rows = [(name, decoding(layout), weights_of(layout) * itemsize) for name, layout, itemsize in weights]
    chosen = []
    for name, _, nbytes in sorted(rows, key=lambda row: -row[1] / row[2]):
        if nbytes <= budget:
            chosen.append(name)
            budget -= nbytes
    return chosen


def decode_scratch(numel: int, itemsize: int) -> int:
    """Bytes one call needs for a weight: float32 while it is decoded, its own dtype, twice more while LoRA is added."""
    return numel * (4 + 3 * itemsize)


# Elements alive at the peak of a call of SDXL's UNet, for each pixel of the latents (benchmarks/activation_memory.py,
# traced on diffusers' UNet with attention that makes its result only; equal for 512 to 1024 px and batch 1 and 2).
ACTIVATIONS_PER_LATENT_PIXEL = 5040


def activation_bytes(pixels: int, batch: int, itemsize: int = 2) -> int:
    """Of one call on square pictures."""
    return ACTIVATIONS_PER_LATENT_PIXEL * itemsize * batch * (pixels // 8) ** 2


@dataclass(frozen=True)
class SamplingMemory:
    """Where a sampling's peak comes from; bytes."""

    weights: int                           # as stored: codes, dense layers, shared tables
    scratch: int                           # the largest weight while it is decoded and patched
    kept: int                              # decoded weights that are kept
    activations: int                       # of one call

    @property
    def peak(self) -> int:
        """Their sum."""
        return self.weights + self.scratch + self.kept + self.activations


def dtype_name(dtype: torch.dtype) -> str:
    """float16, not torch.float16"""
    return str(dtype).removeprefix("torch.")
