"""What the machine can do at best: bytes copied a second by size, operations a second of a large matmul."""
from __future__ import annotations

from collections.abc import Iterator

import torch

from ..cost_model import dtype_name
from .timing import measure

COPY_MB = (4, 16, 64, 256)                 # small ones stay in a GPU's L2 cache, where decoded weights should be
MATMUL = 8192


def rows(settings) -> Iterator[dict]:
    """{"what": "copy", "mbytes", "gigabytes_per_second"} and {"what": "matmul", "dtype", "teraflops"}"""
    device, small = settings.device, settings.by > 1
    for megabytes in COPY_MB[:2] if small else COPY_MB:
        source = torch.ones(megabytes << 20, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        took = measure(target.copy_, [source], device, settings.seconds)
        yield {"what": "copy", "mbytes": megabytes, **took.as_row(),
               "gigabytes_per_second": round(2 * source.nbytes / took.median / 1e9, 1)}
    yield from _matmuls(settings, small)


def _matmuls(settings, small: bool) -> Iterator[dict]:
    accelerated = torch.device(settings.device).type != "cpu"
    size = MATMUL if accelerated else 512 if small else 2048
    kinds = (torch.float16, torch.bfloat16) if accelerated else (torch.float32, torch.bfloat16)
    for kind in kinds:
        a, b = (torch.randn(size, size, device=settings.device, dtype=kind) for _ in range(2))
        took = measure(lambda x, b=b: x @ b, [a], settings.device, settings.seconds)
        yield {"what": "matmul", "size": size, "dtype": dtype_name(kind), **took.as_row(),
               "teraflops": round(2 * size**3 / took.median / 1e12, 3)}
    if accelerated and torch.device(settings.device).type == "cuda":
        a, b = (torch.randint(-9, 9, (size, size), device=settings.device, dtype=torch.int8) for _ in range(2))
        took = measure(lambda x: torch._int_mm(x, b.t()), [a], settings.device, settings.seconds)
        yield {"what": "matmul", "size": size, "dtype": "int8", **took.as_row(),
               "teraflops": round(2 * size**3 / took.median / 1e12, 3)}
