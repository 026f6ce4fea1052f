"""SDNQ (Disty0): 2 to 4 bits by its own layer quantizer; plain, codebook, Hadamard, SVD; linears and convolutions.

Its `quant_conv` is taken as on, and none of its lists of skipped layers is applied: both in its favor.
"""
from __future__ import annotations

import math

import torch

from .coded import Coded, count_bytes, kept, need, version

LEAST_WEIGHTS, LEAST_CHANNELS = 16384, 32  # SDNQConfig's defaults: smaller layers stay as they are


def codes(shape: tuple[int, ...]) -> bool:
    """SDNQConfig's rule by size."""
    return len(shape) in (2, 4) and math.prod(shape) >= LEAST_WEIGHTS and min(shape[:2]) >= LEAST_CHANNELS


def code(weight: torch.Tensor, bits: int, codebook: bool = False, hadamard: bool = False, svd: bool = False,
         half_scales: bool = False, byte_scales: bool = False, group: int = 0) -> Coded:
    """Code float32 [out, in(, kh, kw)] with unsigned integers of `bits`, everything else as SDNQ chooses it.

    half_scales: fp16 instead of its default fp32 scales (dequantize_fp32=False); byte_scales: scales coded with 8 bits
    in turn (scale_dtype). group: 0 = its own choice, -1 = rows, -2 = the tensor.
    """
    quantizer = need("sdnq.quantizer", "sdnq")
    extras = [word for word, on in (("codebook", codebook), ("hadamard", hadamard), ("svd", svd),
                                    ("fp16-scales", half_scales), ("uint8-scales", byte_scales), ("rows", group == -1),
                                    ("tensor", group == -2)) if on]
    name = "-".join(["sdnq", f"uint{bits}", *extras])
    settings = {"bits": bits, "codebook": codebook, "hadamard": hadamard, "svd": svd, "half_scales": half_scales,
                "byte_scales": byte_scales, "group": group, "version": version("sdnq")}
    if not codes(tuple(weight.shape)):
        return kept(weight, name, settings)
    decoder, stored = quantizer.sdnq_quantize_layer_weight(
        weight.half(), layer_class_name="Conv2d" if weight.dim() == 4 else "Linear", weights_dtype=f"uint{bits}",
        use_codebook=codebook, use_hadamard=hadamard, use_svd=svd, dequantize_fp32=not half_scales,
        scale_dtype="uint8" if byte_scales else None, group_size=group)
    decoded = decoder(**stored, skip_compile=True, dtype=torch.float32)
    return Coded(decoded.float().reshape(weight.shape), count_bytes(*stored.values()), 1.0, name, settings)
