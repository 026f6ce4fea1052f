"""Owns x times a coded part with int8 activations: x is rotated and rounded token by token, the part stays integers.

With W = diag(row * gain) C H diag(sign) diag(col), C the decoded integers, W x = row * gain * (C u) and
u = H (sign * col * x). Each token of u has one scale s = max |u| / (2^(bits-1) - 1) and becomes round(u / s), so the
product is one of int8 matrices with int32 sums, and the rotation of the weights is never undone.
"""
from __future__ import annotations

import importlib

import torch

from . import dispatch
from .checks import check_part
from .dispatch import Backend, BackendError, Requirements
from .integers import int8_refusal
from .parts import Part

HALF = (torch.float16, torch.bfloat16)

# In order of preference: the host's own kernel, the library's product, ours. None was timed on a GPU yet.
BACKENDS = (
    Backend("comfy_kitchen", "int8_kitchen", Requirements(devices=("cuda",), dtypes=HALF, package="comfy_kitchen",
                                                          self_test=True)),
    Backend("torch", "int8_torch", Requirements(devices=("cpu", "cuda"), dtypes=dispatch.WEIGHTS, self_test=True)),
    Backend("triton", "int8_triton", Requirements(devices=("cuda",), dtypes=HALF, package="triton", version=(3, 3),
                                                  widest=2**16, capability=(8, 0), self_test=True)),
)


def int8_linear(x: torch.Tensor, part: Part, bias: torch.Tensor | None = None, bits: int = 8,
                integers: torch.Tensor | None = None, backend: str | None = None) -> torch.Tensor:
    """x [..., in_features], rounded to `bits` (2 to 8) with a scale for each token, times the transpose of a part.

    -> [..., out_features] in x's dtype. integers: the part decoded to int8 [out_features, in_features], rows may lie
    apart; None decodes it now. A token of zeros gives the bias; one with NaN or infinity gives NaN, and no other token
    changes with it. Raises ValueError or TypeError for what does not fit, BackendError (a ValueError) where int8 cannot
    hold the part or nothing here multiplies int8.
    """
    check_part(part)
    _check(x, part, bias, bits, integers)
    chosen = choose(part, x.dtype, bits, backend)
    if integers is None:
        integers = dispatch.decode_part(part, dtype=torch.int8)                     # [out_features, in_features]
    rows = x.reshape(-1, part.channels)                                             # [tokens, in_features]
    if not len(rows):
        return x.new_empty(*x.shape[:-1], part.out_features)
    module = importlib.import_module(f".{chosen.module}", __package__)
    return module.linear(rows, part, integers, bias, bits).view(*x.shape[:-1], part.out_features)


def choose(part: Part, dtype: torch.dtype, bits: int = 8, backend: str | None = None) -> Backend:
    """Who multiplies: the backend asked for, or the first that does not decline; BackendError with all reasons."""
    reason = part_refusal(part)
    if reason:
        raise BackendError(f"this part cannot be multiplied in int8: {reason}", {})
    reasons = {}
    for candidate in BACKENDS:
        if backend not in (None, candidate.name):
            continue
        reason = (f"quantizes to 8 bits, got {bits}" if candidate.name == "comfy_kitchen" and bits != 8 else
                  dispatch.refusal(candidate, part, dtype, f"int8 {candidate.name}"))
        if reason is None:
            return candidate
        reasons[candidate.name] = reason
    listed = "; ".join(f"{name} {reason}" for name, reason in reasons.items()) or f"there is no backend '{backend}'"
    raise BackendError(f"nothing here multiplies int8: {listed}", reasons)


def part_refusal(part: Part) -> str | None:
    """Why a part has no int8 product, whatever the machine; None where it has."""
    if part.taps != 1:
        return f"the int8 product takes linear layers, got {part.taps} taps"
    if part.scales.group is not None:
        return "the int8 product takes row scales, got scales of groups"
    return int8_refusal(part)


def _check(x, part: Part, bias, bits: int, integers) -> None:
    if part.taps == 1 and (x.ndim < 1 or x.shape[-1] != part.channels):
        raise ValueError(f"x must be [..., {part.channels}] for a part of {part.channels} channels, got "
                         f"{list(x.shape)}")
    if x.dtype not in dispatch.WEIGHTS:
        raise TypeError(f"x can be {', '.join(map(str, dispatch.WEIGHTS))}, got {x.dtype}")
    if x.device != part.codes.device:
        raise ValueError(f"x must be on {part.codes.device}, where the codes are, got {x.device}")
    if bias is not None and (bias.device != x.device or list(bias.shape) != [part.out_features]):
        raise ValueError(f"bias must be [{part.out_features}] on {x.device}, got {list(bias.shape)} on {bias.device}")
    if not 2 <= bits <= 8:
        raise ValueError(f"activations have 2 to 8 bits here, got {bits}")
    shape = [part.out_features, part.channels]
    if integers is not None and (integers.dtype != torch.int8 or list(integers.shape) != shape):
        raise ValueError(f"integers must be torch.int8 {shape}, got {integers.dtype} {list(integers.shape)}")
