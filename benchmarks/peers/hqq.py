"""HQQ (Mobius Labs): its quantizer with the proximal solver; linears only; scales and zero points stored in fp16."""
from __future__ import annotations

import torch

from .coded import Coded, count_bytes, kept, need, version

LEAST_SPREAD = 1e-4                        # HQQ treats groups narrower than this as constant


def codes(shape: tuple[int, ...], group: int = 64) -> bool:
    """HQQ has no convolution; the group must divide the weights."""
    return len(shape) == 2 and shape[0] * shape[1] % group == 0


def code(weight: torch.Tensor, bits: int, group: int = 64) -> Coded:
    """Code float32 [out, in] in groups along the inputs (axis 1), its documented setting for fast kernels."""
    quantizer = need("hqq.core.quantize", "hqq").Quantizer
    name, settings = f"hqq-{bits}bit-g{group}", {"bits": bits, "group": group, "axis": 1, "version": version("hqq")}
    if not codes(tuple(weight.shape), group):
        return kept(weight, name, settings)
    packed, meta = quantizer.quantize(weight, nbits=bits, group_size=group, axis=1, optimize=True, device="cpu",
                                      compute_dtype=torch.float16)
    meta["scale"], meta["zero"] = meta["scale"].half(), meta["zero"].half()
    stored = count_bytes(packed, meta["scale"], meta["zero"])
    exact = {**meta, "scale": meta["scale"].float(), "zero": meta["zero"].float(), "compute_dtype": torch.float32}
    return Coded(quantizer.dequantize(packed, exact).float().view(weight.shape), stored, 1.0, name, settings)
