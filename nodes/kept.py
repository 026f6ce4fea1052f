"""Decoded weights that a loaded model keeps on its device, within the bytes its loader was given (0: none).

They stand in no state dict, so sizes and files are as without them; they are counted with what is loaded, given back
before any weight, and let go of whenever the weight they belong to is moved or replaced.
"""
from __future__ import annotations

from collections.abc import Iterable

import torch

from ..vq_core.activations.int8 import decode_integers, why_emulated
from ..vq_core.cost_model import worth_keeping
from . import host
from .guards import LOADED_MARK
from .layout import decode, unwrap

ALL = 1 << 62                              # bytes: whatever there is room for
_SHARE_OF_FREE_MEMORY = 0.5                # more than this is left to the sampling, whatever was asked for


def set_budget(patcher, nbytes: int) -> None:
    """Bytes that this patcher's model, and every clone of it, may keep once it is loaded."""
    patcher.model.vq_keep_bytes = max(0, nbytes)


def fill(patcher, device, room: float) -> None:
    """Keep what is worth most, of the layers that are on the device, within budget and room; drop the rest."""
    modules = dict(patcher.coded_modules())
    budget = min(getattr(patcher.model, "vq_keep_bytes", 0), room)
    if budget > 0:
        budget = min(budget, kept_bytes(modules.values()) + _SHARE_OF_FREE_MEMORY * host.free_bytes(device))
    here = {key: module for key, module in modules.items() if getattr(module, LOADED_MARK, False)}
    chosen = set() if budget <= 0 else _chosen(here, int(budget))
    for key, module in modules.items():
        if key not in chosen:
            module.kept = None
    for key in chosen:
        module = modules[key]
        if module.kept is None:
            module.kept = _made(module)


def _made(module) -> torch.Tensor:
    """What is kept of a layer: int8 [out, in] where its product takes integers, else its weight [*logical shape]."""
    coded = unwrap(module.weight)
    return decode_integers(coded) if _as_integers(module) else decode(coded, module.weight.dtype)


def _as_integers(module) -> bool:
    spec, weight = module.inputs, module.weight
    return spec is not None and why_emulated(unwrap(weight), weight.dtype, spec.bits, spec.rotated) is None


def _chosen(modules: dict[str, torch.nn.Module], budget: int) -> set[str]:
    return set(worth_keeping([(key, unwrap(module.weight).layout,
                               1 if _as_integers(module) else module.weight.dtype.itemsize)
                              for key, module in modules.items()], budget))


def drop(modules: Iterable) -> int:
    """Let go of all of them -> bytes."""
    freed = 0
    for module in modules:
        if module.kept is not None:
            freed, module.kept = freed + module.kept.nbytes, None
    return freed


def kept_bytes(modules: Iterable) -> int:
    """Bytes kept now."""
    return sum(module.kept.nbytes for module in modules if module.kept is not None)
