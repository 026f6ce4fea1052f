"""The int8 product by comfy-kitchen, which ComfyUI brings: it rounds the rotated x by token, multiplies and scales.

x is rotated here, in its own dtype; the integers and their row scales are what comfy-kitchen calls a row-wise quantized
weight.
"""
from __future__ import annotations

import torch

from . import int8_torch
from .parts import Part
from .rotation import hadamard_matrix


def linear(x: torch.Tensor, part: Part, integers: torch.Tensor, bias: torch.Tensor | None, bits: int) -> torch.Tensor:
    """x float16 or bfloat16 [tokens, channels], integers int8 [out_features, channels] -> [tokens, out_features]."""
    import comfy_kitchen

    scale = int8_torch.row_scales(part) * max(1, part.rotation) ** 0.5             # for u is normalized below
    scale = scale.expand(part.out_features).contiguous()
    bias = None if bias is None else bias.to(x.dtype)
    return comfy_kitchen.int8_linear(_rotated(x, part), integers.contiguous(), scale, bias, x.dtype)


def self_test(family: str, device: torch.device) -> str | None:
    """None, or why comfy-kitchen's product must not be used on this machine."""
    try:
        return int8_torch.compare(linear, family, device)
    except (RuntimeError, ValueError, TypeError, AttributeError, ImportError, OSError, NotImplementedError) as error:
        return f"failed its self-test for {family}: {type(error).__name__}: {error}"


def _rotated(x: torch.Tensor, part: Part) -> torch.Tensor:
    """H (sign * col * x) / sqrt(block) in x's dtype: normalized, so that float16 holds what x held."""
    if part.scales.col is not None:
        x = (x.float() * part.scales.col).to(x.dtype)
    if not part.rotation:
        return x
    matrix = hadamard_matrix(part.rotation, x.device).mul_(part.rotation**-0.5).to(x.dtype)
    flipped = x * int8_torch._signs(part.rotation_seed, part.channels, x.device).to(x.dtype)
    return (flipped.view(-1, part.rotation) @ matrix).view(x.shape)
