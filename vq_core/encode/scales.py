"""Row and group scales of the codebook encoders: normalize before coding, refit by least squares, store as float16."""
from __future__ import annotations

import math

import torch

# Rows weaker than this count as zero: scale / (32767 * 2**14) would leave float32's normal range.
TINIEST_RMS = 1e-28
HALF_TOP = 14                              # the largest stored scale lies in [2**13, 2**14]: 2.7e8 of range below


def split_groups(matrix: torch.Tensor, group_size: int) -> torch.Tensor:
    """[rows, cols] -> [rows, groups, size], zero padded; group_size 0 = the whole row is one group (a view)."""
    rows, cols = matrix.shape
    if group_size == 0:
        return matrix.view(rows, 1, cols)
    groups = -(-cols // group_size)
    padded = torch.nn.functional.pad(matrix, (0, groups * group_size - cols))       # [rows, groups * size]
    return padded.view(rows, groups, group_size)


def group_mask(cols: int, group_size: int, device=None) -> torch.Tensor:
    """1 where split_groups holds a column, 0 where it holds padding: float32 [groups, size]."""
    return split_groups(torch.ones(1, cols, device=device), group_size)[0]


def root_mean_square(groups: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scale of each group of [rows, groups, size]: float32 [rows, groups]; exactly 0 for a group of zeros.

    Divides by the largest magnitude first, so 1e-30 and 1e30 neither vanish nor overflow when squared.
    """
    peak = groups.abs().amax(-1)                                                    # [rows, groups]
    squares = (groups / _nonzero(peak)[..., None]).square_().sum(-1)                # [rows, groups]
    rms = peak * (squares / mask.sum(-1)).sqrt()
    return torch.where(rms < TINIEST_RMS, torch.zeros_like(rms), rms)


def divide(groups: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """[rows, groups, size] / [rows, groups]; groups of scale 0 become exact zeros."""
    inverse = torch.where(scales == 0, torch.zeros_like(scales), 1 / _nonzero(scales))
    return groups * inverse[..., None]


def refit(targets: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Least-squares factor <t, d> / <d, d> along the last dimension; 0 where `decoded` is all zero."""
    energy = decoded.square().sum(-1)
    return (targets * decoded).sum(-1) / _nonzero(energy)


def to_half(scales: torch.Tensor, step: float) -> tuple[torch.Tensor, float]:
    """Split scales * step into float16 values and one float32 gain: half * gain ~= scales * step.

    The gain is `step` times a power of two that puts the largest scale just under 2**14.
    """
    top = float(scales.abs().max()) if scales.numel() else 0.0
    exponent = math.frexp(top)[1] - HALF_TOP if top > 0 else 0
    half = torch.ldexp(scales.to(torch.float64), torch.tensor(-exponent)).to(torch.float16)
    gain = torch.tensor(math.ldexp(step, exponent), dtype=torch.float32)
    return half.cpu().contiguous(), float(gain)


def to_integers(values: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Float codebook -> int16 of the same shape and the step between integers: values ~= integers * step.

    Rounding changed the error of a 4-bit additive code by 1e-6 of itself.
    """
    peak = float(values.abs().max())
    step = peak / 32767 if peak > 0 else 1.0
    return (values.to(torch.float64) / step).round_().to(torch.int16).cpu().contiguous(), step


def _nonzero(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values == 0, torch.ones_like(values), values)
