"""Owns x times a coded part: decode and F.linear anywhere, one fused kernel where the tokens are few enough."""
from __future__ import annotations

import torch
from torch.nn import functional as F

from . import dispatch
from .parts import Part

# Above this many rows of x the fused kernel would decode every weight once per row block; decoding to scratch once and
# a library's matmul is the better plan then.
MAX_TOKENS = 256


def coded_linear(x: torch.Tensor, part: Part, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., in_features] times the transpose of a part [out_features, in_features] (one tap) -> [..., out_features].

    In x's dtype (float32, float16 or bfloat16), on the part's device. The same as F.linear with the decoded weight up
    to rounding, and exactly that where can_fuse gives a reason. Raises ValueError or TypeError for an x that does not
    fit.
    """
    _check(x, part, bias)
    tokens = x.numel() // max(1, x.shape[-1])
    if can_fuse(part, tokens, x.dtype, x.device) is None:
        raise NotImplementedError
    return F.linear(x, dispatch.decode_part(part, dtype=x.dtype), bias)


def can_fuse(part: Part, tokens: int, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Why coded_linear would decode first for so many rows of x in dtype; None where one kernel does it all."""
    device = torch.device(device)
    if device.type != "cuda":
        return f"the fused kernel runs on cuda, got {device}"
    return "there is no fused kernel yet"


def _check(x: torch.Tensor, part: Part, bias: torch.Tensor | None) -> None:
    if part.taps != 1 or x.ndim < 1 or x.shape[-1] != part.channels:
        raise ValueError(f"x must be [..., {part.channels}] for a linear part of {part.channels} channels, got "
                         f"{list(x.shape)} for {part.taps} taps")
    if x.dtype not in dispatch.WEIGHTS:
        raise TypeError(f"x can be {', '.join(map(str, dispatch.WEIGHTS))}, got {x.dtype}")
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is not None and (tensor.device != part.codes.device or tensor.dtype != x.dtype):
            raise ValueError(f"{name} must be {x.dtype} on {part.codes.device}, got {tensor.dtype} on {tensor.device}")
    if bias is not None and list(bias.shape) != [part.out_features]:
        raise ValueError(f"bias must be [{part.out_features}], got {list(bias.shape)}")
