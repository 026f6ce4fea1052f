"""comfy-kitchen's W4A8: rotated 4-bit codes, fp8 group scales, a 16-entry table (Lloyd-Max where it is worth it).

Linears only, as in ComfyUI. The weight alone is measured: activations in 8 bits would cost more on top.
"""
from __future__ import annotations

import torch

from .coded import Coded, count_bytes, kept, need, version

ROTATIONS = (256, 64, 16)                  # its default first; ComfyUI wants one that divides the inputs


def codes(shape: tuple[int, ...]) -> bool:
    """ComfyUI quantizes linears; the inputs must fit a rotation."""
    return len(shape) == 2 and shape[1] % ROTATIONS[-1] == 0


def code(weight: torch.Tensor, bits: int = 4, group: int = 16, codebook: bool = True) -> Coded:
    """Code float32 [out, in] with 4 (or 6, without table) bits."""
    module = need("comfy_kitchen.backends.eager.w4a8_int8", "comfy-kitchen")
    name = f"kitchen-w{bits}a8-g{group}" + ("-codebook" if codebook else "")
    settings = {"bits": bits, "group": group, "codebook": codebook, "version": version("comfy-kitchen")}
    if not codes(tuple(weight.shape)):
        return kept(weight, name, settings)
    rotation = settings["rotation"] = next(size for size in ROTATIONS if weight.shape[1] % size == 0)
    layout = {"group_size": group, "convrot_groupsize": rotation}
    *packed, correction, table = module.quantize_w4a8_int8_weight(weight, codebook=codebook, bits=bits, **layout)
    decoded = module.dequantize_w4a8_int8_weight(*packed, codebook=table, correction=correction, **layout)
    return Coded(decoded.float().view(weight.shape), count_bytes(*packed, correction, table), 1.0, name, settings)
