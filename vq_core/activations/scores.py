"""Attention scores of few bits: uniform with a scale a query, or DGQ's logarithm, the start token kept exact."""
from __future__ import annotations

import torch

from .specs import ScoreSpec


def quantize_scores(scores: torch.Tensor, spec: ScoreSpec, cross: bool) -> torch.Tensor:
    """Softmax outputs [n, heads, queries, keys], float32 -> the same of few bits.

    In cross-attention with keep_start, key 0 is neither changed nor looked at (DGQ, arXiv 2501.04304).
    """
    kept = int(cross and spec.keep_start)
    if spec.method == "keep" or scores.shape[-1] <= kept:
        return scores
    rest = scores[..., kept:]
    if spec.method == "row_uniform":
        found = _row_uniform(rest, spec.bits)
    else:
        found = _logarithm(rest, spec, spec.log_steps if spec.method == "log_r" else 1)
    return torch.cat([scores[..., :kept], found], -1)


def _row_uniform(scores: torch.Tensor, bits: int) -> torch.Tensor:
    step = scores.amax(-1, keepdim=True) / (2**bits - 1)                            # [n, heads, queries, 1]
    return torch.where(step > 0, (scores / step).round_() * step, scores)


def _logarithm(scores: torch.Tensor, spec: ScoreSpec, steps: int) -> torch.Tensor:
    """s 2^(-q / steps), q = clip(round(-steps log2(scores / s)), 0, 2^bits - 1), s the largest score."""
    most = scores.max() if spec.scale_of == "batch" else scores.amax((1, 2, 3), keepdim=True)
    codes = (-steps * (scores / most).log2()).round_().clamp_(0, 2**spec.bits - 1)
    return torch.where(most > 0, most * torch.exp2(-codes / steps), scores)
