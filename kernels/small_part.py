"""A part of every family that a self-test multiplies or decodes in no time."""
from __future__ import annotations

import torch

from .packing import pack_codes
from .parts import AdditivePart, LutPart, Part, Scales, TrellisPart


def small_part(family: str, device: torch.device, rotation: int, taps: int = 2) -> Part:
    """40 x taps * 24 weights for a self-test."""
    generator, cols = torch.Generator().manual_seed(1), 24 * taps

    def integers(low: int, high: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator).to(device, dtype)

    scales = Scales(0.03125, row=integers(1, 99, 40, dtype=torch.float16), col=integers(1, 9, 24, dtype=torch.float16))
    if family == "lut":
        codes = pack_codes(integers(0, 8, 40, cols, dtype=torch.int32), 3)
        return LutPart(40, 24, taps, 3, codes, scales, values=integers(-99, 99, 8, dtype=torch.int16),
                       rotation=rotation)
    if family == "additive":
        codes = pack_codes(integers(0, 64, 40, cols // 2, dtype=torch.int32), 6)
        books = integers(-99, 99, 3, 2, 64, 4, dtype=torch.int16)
        return AdditivePart(40, 24, taps, 6, 4, codes, books, scales, rotation=rotation)
    codes, table = integers(-2**31, 2**31, 1, 5, cols, dtype=torch.int32), integers(-127, 128, 256, 2, dtype=torch.int8)
    return TrellisPart(40, 24, taps, 8, 5, 2, 3, codes, table, scales, rotation=rotation)
