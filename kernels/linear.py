"""Owns x times a coded part: decode and F.linear anywhere, one fused kernel where the tokens are few enough."""
from __future__ import annotations

import importlib

import torch
from torch.nn import functional as F

from . import dispatch
from .checks import check_part
from .dispatch import Backend, Requirements
from .parts import Part

# Above this many rows of x a weight would be decoded too often: once to scratch, then a library's matmul, is faster.
MAX_TOKENS = 256
MAX_BLOCK = 1024          # of a rotation done on x, as a product with a float32 matrix of 4 MB

# The fused kernel needs tensor cores for float16 and bfloat16 (sm_80; every AMD card that Triton serves).
FUSED = Backend("triton", "linear_triton", Requirements(
    devices=("cuda",), dtypes=(torch.float16, torch.bfloat16), package="triton", version=(3, 3), widest=2**24,
    capability=(8, 0), self_test=True))


def coded_linear(x: torch.Tensor, part: Part, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., in_features] times the transpose of a part [out_features, in_features] (one tap) -> [..., out_features].

    In x's dtype (float32, float16 or bfloat16), on the part's device. The same as F.linear with the decoded weight up
    to rounding (tests/kernels/tolerances.py says how far), and exactly that where can_fuse gives a reason. Raises
    ValueError or TypeError for an x that does not fit.
    """
    check_part(part)
    _check(x, part, bias)
    tokens = x.numel() // max(1, x.shape[-1])
    if can_fuse(part, tokens, x.dtype, x.device) is None:
        module = importlib.import_module(f".{FUSED.module}", __package__)
        return module.linear(x.reshape(tokens, -1), part, bias).view(*x.shape[:-1], part.out_features)
    return F.linear(x, dispatch.decode_part(part, dtype=x.dtype), bias)


def can_fuse(part: Part, tokens: int, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Why coded_linear would decode first for so many rows of x in dtype; None where one kernel does it all.

    What a machine lacks is counted in dispatch.fallbacks(), as "fused triton".
    """
    if not 1 <= tokens <= MAX_TOKENS:
        return f"the fused kernel takes 1 to {MAX_TOKENS} tokens, got {tokens}"
    if part.taps != 1:
        return f"the fused kernel takes linear layers, got {part.taps} taps"
    if part.scales.group is not None:
        return "the fused kernel takes row scales, got scales of groups"
    if part.rotation > MAX_BLOCK:
        return f"the fused kernel rotates by blocks up to {MAX_BLOCK}, got {part.rotation}"
    if torch.device(device) != part.codes.device:
        return f"the codes are on {part.codes.device}, got {device}"
    return dispatch.refusal(FUSED, part, dtype, "fused triton")


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
