"""Fake quantization of plain tensors: values become the nearest integer of a grid and floating point again.

Everything is computed in float32. A range without extent keeps its values exactly.
"""
from __future__ import annotations

import torch


def symmetric(x: torch.Tensor, bits: int, dims: tuple[int, ...]) -> torch.Tensor:
    """round(x / s) s with s = max |x| / (2^(bits-1) - 1) over dims. x: float32, any shape."""
    most = 2 ** (bits - 1) - 1
    scale = x.abs().amax(dims, keepdim=True) / most
    return torch.where(scale > 0, (x / scale).round_().clamp_(-most, most) * scale, x)


def affine(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int) -> torch.Tensor:
    """s (clip(round(x / s) + z, 0, 2^bits - 1) - z), s = (high - low) / (2^bits - 1), z = round(-low / s).

    x, low, high: float32, broadcast against each other. What lies outside the range gets its nearest end.
    """
    levels = 2**bits - 1
    step = (high - low) / levels
    zero = (-low / step).round_()
    codes = ((x / step).round_() + zero).clamp_(0, levels)
    return torch.where(step > 0, (codes - zero) * step, x)
