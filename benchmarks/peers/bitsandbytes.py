"""bitsandbytes NF4, with and without double quantization; linears only. Counted as its state dict stores it."""
from __future__ import annotations

import torch

from .coded import Coded, count_bytes, kept, need, version


def codes(shape: tuple[int, ...]) -> bool:
    """bitsandbytes replaces linears only."""
    return len(shape) == 2


def code(weight: torch.Tensor, bits: int = 4, nested: bool = True, block: int = 64) -> Coded:
    """Code float32 [out, in] as NF4; nested: the block maxima are coded with 8 bits (bnb_4bit_use_double_quant)."""
    functional = need("bitsandbytes.functional", "bitsandbytes")
    name = "bnb-nf4" + ("-nested" if nested else "")
    settings = {"bits": bits, "block": block, "nested": nested, "version": version("bitsandbytes")}
    if not codes(tuple(weight.shape)):
        return kept(weight, name, settings)
    packed, state = functional.quantize_4bit(weight.half(), blocksize=block, compress_statistics=nested,
                                             quant_type="nf4")
    stored = count_bytes(packed, *state.as_dict(packed=True).values())
    decoded = functional.dequantize_4bit(packed, state).float()
    return Coded(decoded.view(weight.shape), stored, 1.0, name, settings)
