"""Ours, by the product's own encoders: trellis, palette as Apple's tools store it, additive as VQDM stores it, RTN."""
from __future__ import annotations

import torch

from .coded import Coded

TRELLIS_RATES = (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6)
# Apple's palettes (coremltools): one fp16 table a tensor and no row scales, widths 1, 2, 4, 6, 8.
PALETTE_RATES = (1, 2, 4, 6, 8)
KIND = {"ours-trellis": "trellis", "ours-additive": "additive", "ours-uniform": "uniform"}
TABLE_BYTES = 4096 + 64                    # of a trellis table, shared by a file: charged by share, see table_bytes
SDXL_CODED_WEIGHTS = 2_540_953_600


def codes(shape: tuple[int, ...]) -> bool:
    """Whether a weight of this shape is coded."""
    return len(shape) in (2, 4)


def code(weight: torch.Tensor, bits: float, method: str = "ours-trellis", seed: int = 0) -> Coded:
    """Code float32 [out, in(, kh, kw)] by one of KIND, or ours-palette."""
    if method == "ours-palette":
        return code_palette(weight, int(bits))
    from vqpack.vq_core.encode import encode_weight
    from vqpack.vq_core.spec import make_spec

    coded = encode_weight(weight, make_spec(KIND[method], bits), seed=seed).weight
    return Coded(coded.decode(torch.float32), coded.nbytes + table_bytes(coded), 1.0, method, {"bits": bits})


def table_bytes(coded) -> int:
    """This weight's share of the shared trellis tables: by weights, in a file of SDXL's size, rounded up."""
    total = sum(table.numel() * table.element_size() for table in coded.tables.values())
    return -(-total * coded.numel // SDXL_CODED_WEIGHTS)


def code_palette(weight: torch.Tensor, bits: int) -> Coded:
    """Lloyd-Max of the whole tensor with one fp16 table (Apple's palettization), by our palette's own fit."""
    from vqpack.vq_core.encode.palette import fit_levels
    from vqpack.vq_core.spec import PaletteSpec

    flat = weight.reshape(1, -1)
    rms = flat.square().mean().sqrt().reshape(1, 1)                                 # [1, 1]
    values, step = fit_levels(flat, rms, PaletteSpec(bits=bits))
    table = (values.double() * step * rms.double()[0, 0]).half().float()            # [2**bits]
    middles = (table[1:] + table[:-1]) / 2
    decoded = table[torch.bucketize(flat.reshape(-1), middles)].view(weight.shape)
    stored = -(-weight.numel() * bits // 8) + 2 * 2**bits
    return Coded(decoded, stored, 1.0, "ours-palette", {"bits": bits, "scales": "none", "table": "fp16, one a tensor"})
