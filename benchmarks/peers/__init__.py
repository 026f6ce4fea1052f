"""What a user would install instead, each by its own code, for the benches only: nothing here enters the product.

Every module has code(weight float32 [out, in(, kh, kw)], bits, ...) -> Coded and codes(shape) -> bool; code raises
NotHere with the reason where the peer is not installed or does not run. METHODS names the settings that are compared.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType

import torch

from . import bitsandbytes, gguf, hqq, kitchen, ours, quanto, sdnq, torchao
from .coded import Coded, NotHere

__all__ = ["METHODS", "OURS", "PEERS", "Coded", "Method", "NotHere", "absent", "code"]


@dataclass(frozen=True)
class Method:
    """One row of a comparison."""

    name: str
    module: ModuleType
    bits: float
    settings: dict = field(default_factory=dict)
    family: str = ""                       # what one installs, or ours-<kind>

    def code(self, weight: torch.Tensor) -> Coded:
        """Code float32 [out, in(, kh, kw)]."""
        return self.module.code(weight, self.bits, **self.settings)

    def codes(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight of this shape is coded rather than kept in fp16."""
        group = {"group": self.settings["group"]} if "group" in self.settings and self.module in (hqq, torchao) else {}
        return self.module.codes(shape, **group)


def _sdnq() -> list[Method]:
    rotated = {"codebook": True, "hadamard": True}
    variants = (("", {}), ("fp16-scales", {"half_scales": True}), ("uint8-scales", {"byte_scales": True}),
                ("codebook", {"codebook": True}), ("hadamard", {"hadamard": True}), ("svd", {"svd": True}),
                ("hadamard-uint8-scales", {"hadamard": True, "byte_scales": True}),
                ("codebook-hadamard", rotated), ("codebook-hadamard-svd", {**rotated, "svd": True}),
                # its leanest: no groups
                ("codebook-hadamard-fp16-scales-rows", {**rotated, "half_scales": True, "group": -1}),
                ("codebook-fp16-scales-tensor", {"codebook": True, "half_scales": True, "group": -2}))
    return [Method(f"sdnq-uint{bits}" + (f"-{name}" if name else ""), sdnq, bits, settings, "sdnq")
            for bits in (2, 3, 4) for name, settings in variants]


def _ours() -> list[Method]:
    rates = {"ours-trellis": ours.TRELLIS_RATES, "ours-additive": (1, 2, 3, 4), "ours-palette": ours.PALETTE_RATES,
             "ours-uniform": (2, 3, 4)}
    return [Method(f"{kind}-{bits:g}", ours, bits, {"method": kind}, kind) for kind in rates for bits in rates[kind]]


def _peers() -> list[Method]:
    return [*_sdnq(),
            *(Method(f"hqq-{bits}bit-g{group}", hqq, bits, {"group": group}, "hqq")
              for bits, group in ((2, 16), (2, 64), (3, 64), (4, 64))),
            Method("bnb-nf4", bitsandbytes, 4, {"nested": False}, "bitsandbytes"),
            Method("bnb-nf4-nested", bitsandbytes, 4, {"nested": True}, "bitsandbytes"),
            Method("torchao-int4-g32", torchao, 4, {"group": 32}, "torchao"),
            Method("torchao-int4-g128", torchao, 4, {"group": 128}, "torchao"),
            Method("torchao-int4-g64-hqq", torchao, 4, {"group": 64, "solver": "hqq"}, "torchao"),
            *(Method(f"quanto-qint{bits}" + ("-hqq" if solver == "hqq" else ""), quanto, bits, {"optimizer": solver},
                     "optimum-quanto") for bits in (2, 4) for solver in ("max", "hqq")),
            Method("kitchen-w4a8-g16-codebook", kitchen, 4, {}, "comfy-kitchen"),
            Method("kitchen-w4a8-g64-codebook", kitchen, 4, {"group": 64}, "comfy-kitchen"),
            *(Method(f"gguf-{gguf.KINDS[bits]}", gguf, bits, {}, "gguf") for bits in gguf.KINDS)]


OURS = {method.name: method for method in _ours()}
PEERS = {method.name: method for method in _peers()}
METHODS = {**OURS, **PEERS}


def code(name: str, weight: torch.Tensor) -> Coded:
    """Code float32 [out, in(, kh, kw)] by a method of METHODS."""
    return METHODS[name].code(weight)


def absent(methods: list[Method]) -> dict[str, str]:
    """Families that do not run here -> why, tried on a small weight."""
    reasons: dict[str, str] = {}
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    for method in methods:
        if method.family in reasons or method.module is ours:
            continue
        try:
            method.code(weight)
        except NotHere as error:
            reasons[method.family] = str(error)
        except Exception as error:  # noqa: BLE001  foreign code: a peer that fails here is absent, with its reason
            reasons[method.family] = f"{method.name}: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return reasons
