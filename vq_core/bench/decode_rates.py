"""Weights decoded a second, by family, on the shape with most of SDXL's weights, by every backend that is ready."""
from __future__ import annotations

from collections.abc import Iterator

import torch

from ...kernels import dispatch
from ..spec import AdditiveSpec, PaletteSpec, ProductSpec, Spec, TrellisSpec, UniformSpec
from ..weight import CodedWeight
from .parts import random_weight
from .timing import copies_for, measure
from .workload import LINEARS, scaled

SPECS = (TrellisSpec(2, rotation=0), TrellisSpec(3, rotation=0), TrellisSpec(4, rotation=0),
         TrellisSpec(2, rotation=128), TrellisSpec(3, rotation=128), TrellisSpec(2.5, rotation=0),
         TrellisSpec(3, window=8, rotation=0),
         AdditiveSpec(1), AdditiveSpec(2), AdditiveSpec(3), ProductSpec(2), PaletteSpec(3), PaletteSpec(4),
         UniformSpec(4))
QUICK = (TrellisSpec(3, rotation=0), TrellisSpec(3, rotation=128), AdditiveSpec(2), PaletteSpec(4))


def rows(settings) -> Iterator[dict]:
    """{"spec", "backend", "weights_per_second"}, decoding into memory that is there already."""
    shape = scaled(LINEARS[0], settings.by).shape
    for spec in QUICK if settings.seconds < 0.1 else SPECS:
        first = random_weight(shape, spec, 0, settings.device)
        copies = copies_for(first.nbytes + first.numel * settings.dtype.itemsize, settings.device)
        weights = [first, *(random_weight(shape, spec, seed, settings.device) for seed in range(1, min(4, copies)))]
        for backend in backends(first, settings.dtype):
            yield _row(spec, weights, backend, settings)


def backends(weight: CodedWeight, dtype: torch.dtype) -> list[str]:
    """Those that can decode this weight here."""
    part = weight.parts[0][3]
    return [known.name for known in dispatch.BACKENDS
            if known.automatic and known.requirements.refusal(part, dtype, known.module) is None]


def describe(spec: Spec) -> str:
    """trellis 3 bits, window 12, rotation 128"""
    more = f", window {spec.window}, rotation {spec.rotation}" if isinstance(spec, TrellisSpec) else ""
    return f"{spec.kind} {spec.bits:g} bits{more}"


def _row(spec: Spec, weights: list[CodedWeight], backend: str, settings) -> dict:
    outs = [torch.empty(weight.shape, dtype=settings.dtype, device=settings.device) for weight in weights]
    pairs = list(zip(weights, outs, strict=True))
    took = measure(lambda pair: pair[0].decode_matrix(settings.dtype, backend=backend, out=pair[1]), pairs,
                   settings.device, settings.seconds)
    return {"spec": describe(spec), "backend": backend, **took.as_row(),
            "weights_per_second": round(weights[0].numel / took.median)}
