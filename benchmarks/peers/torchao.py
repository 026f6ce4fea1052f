"""torchao's weight-only int4 (the arithmetic of its tinygemm and HQQ paths, which a GPU's packing does not change).

Linears only; bf16 scale and zero point a group, as its tensors keep them.
"""
from __future__ import annotations

import torch

from .coded import Coded, count_bytes, kept, need, version


def codes(shape: tuple[int, ...], group: int = 64) -> bool:
    """torchao's int4 skips what its group does not divide, and has no convolution."""
    return len(shape) == 2 and shape[1] % group == 0


def code(weight: torch.Tensor, bits: int = 4, group: int = 64, solver: str = "tinygemm") -> Coded:
    """Code float32 [out, in] with 4 bits; group: 32, 64, 128 or 256; solver: tinygemm or hqq."""
    primitives = need("torchao.quantization.quant_primitives", "torchao")
    name = f"torchao-int4-g{group}" + ("-hqq" if solver == "hqq" else "")
    settings = {"bits": bits, "group": group, "solver": solver, "version": version("torchao")}
    if not codes(tuple(weight.shape), group):
        return kept(weight, name, settings)
    block, source = (1, group), weight.bfloat16()
    if solver == "hqq":
        made = primitives._choose_qparams_and_quantize_affine_hqq(
            source, nbits=4, group_size=group, axis=1, compute_dtype=torch.bfloat16, device="cpu")
        values, scale, zero = made[0].to(torch.int32).view(weight.shape), made[1], made[2]
        scale, zero = scale.reshape(len(weight), -1), zero.reshape(len(weight), -1)
    else:
        scale, zero = primitives._choose_qparams_affine_tinygemm(
            source, primitives.MappingType.ASYMMETRIC, block, torch.int32, 0, 15, 1e-6, None, torch.bfloat16)
        values = primitives._quantize_affine_tinygemm(source, block, scale, zero, torch.int32, 0, 15)
    decoded = primitives._dequantize_affine_tinygemm(values, block, scale, zero, torch.int32, 0, 15,
                                                     output_dtype=torch.bfloat16).float()
    stored = -(-weight.numel() // 2) + count_bytes(scale.bfloat16(), zero.bfloat16())
    return Coded(decoded.view(weight.shape), stored, 1.0, name, settings)
