"""optimum-quanto: its quantized layers at 2 and 4 bits, with its default or its HQQ optimizer.

A convolution is coded as the linear layer of the same rows: it groups both alike, but on convolutions of one group a
row its HQQ optimizer averages over the wrong axis and keeps a zero point a kernel row (18 bits for 2 in 1x1).
"""
from __future__ import annotations

from types import SimpleNamespace

import torch

from .coded import Coded, count_bytes, need, version


def codes(shape: tuple[int, ...]) -> bool:
    """Linears and convolutions of any size."""
    return len(shape) in (2, 4)


def code(weight: torch.Tensor, bits: int, optimizer: str = "max") -> Coded:
    """Code float32 [out, in(, kh, kw)]; optimizer: max (its default) or hqq. Scales are of the model's type, fp16."""
    quanto = need("optimum.quanto", "optimum-quanto")
    modules = need("optimum.quanto.nn.qmodule", "optimum-quanto")
    name = f"quanto-qint{bits}" + ("-hqq" if optimizer == "hqq" else "")
    settings = {"bits": bits, "optimizer": optimizer, "version": version("optimum-quanto")}
    chosen = quanto.HqqOptimizer() if optimizer == "hqq" else quanto.MaxOptimizer()
    _unpack_in_python()
    module = modules.quantize_module(_layer(weight), weights=getattr(quanto, f"qint{bits}"), optimizer=chosen)
    module.freeze()
    coded = module.weight
    stored = count_bytes(coded._data._data, coded._scale, coded._shift)
    return Coded(coded.dequantize().detach().float().view(weight.shape), stored, 1.0, name, settings)


def _unpack_in_python() -> None:
    """Replace quanto's C++ unpacking by the same in torch: it is compiled at first use and waits for stale locks."""
    need("optimum.quanto.library.extensions.cpp", "optimum-quanto").ext._lib = SimpleNamespace(unpack=unpack)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [n, ...] holding 8 / bits planes, lowest bits first -> uint8 [8 / bits * n, ...]"""
    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])


def _layer(weight: torch.Tensor) -> torch.nn.Module:
    """An fp16 linear layer holding this weight's rows."""
    layer = torch.nn.Linear(weight[0].numel(), len(weight), bias=False)
    layer.weight = torch.nn.Parameter(weight.flatten(1).half(), requires_grad=False)
    return layer
