"""Seeded parts and small files for the tests of the format; codes, books and scales are random: no encoder needed."""
from __future__ import annotations

import torch
from vqpack.kernels.packing import pack_codes, pack_trellis
from vqpack.kernels.parts import AdditivePart, LutPart, Scales, TrellisPart


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integers(low: int, high: int, shape, g) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=g)


def scales(rows: int, channels: int, g, col: bool = False, groups: int = 0, group_size: int = 0) -> Scales:
    def positive(*shape):
        return (torch.rand(*shape, generator=g) + 0.5).half()

    row, group = (None, positive(rows, groups)) if groups else (positive(rows), None)
    return Scales(gain=0.0078125, row=row, group=group, group_size=group_size, col=positive(channels) if col else None)


def lut(rows: int, channels: int, taps: int, g, bits: int = 3, uniform: bool = False, group_size: int = 0,
        **options) -> LutPart:
    cols = taps * channels
    groups = -(-cols // group_size) if group_size else 0
    zeros = integers(0, 2**bits, (rows, groups) if groups else (rows,), g).to(torch.uint8)
    values = integers(-128, 128, (2**bits,), g).to(torch.int16)
    return LutPart(rows, channels, taps, bits, pack_codes(integers(0, 2**bits, (rows, cols), g), bits),
                   scales(rows, channels, g, options.pop("col", False), groups, group_size),
                   values=None if uniform else values, zero_points=zeros if uniform else None, **options)


def additive(rows: int, channels: int, taps: int, g, bits: int = 8, group: int = 8, num_codebooks: int = 3,
             blocks: int = 1, **options) -> AdditivePart:
    groups = -(-taps * channels // group)
    codes = pack_codes(integers(0, 2**bits, (rows, groups * num_codebooks), g), bits)
    books = integers(-100, 100, (blocks, num_codebooks, 2**bits, group), g).to(torch.int16)
    return AdditivePart(rows, channels, taps, bits, group, codes, books,
                        scales(rows, channels, g, options.pop("col", False)), **options)


def trellis(rows: int, channels: int, taps: int, g, window: int = 8, step_bits: int = 3, vector: int = 1,
            chain: int = 1, table: torch.Tensor | None = None, **options) -> TrellisPart:
    cols, steps = taps * channels, -(-rows // vector)
    codes = pack_trellis(integers(0, 2**step_bits, (steps, cols), g), step_bits)
    if table is None:
        table = integers(-127, 128, (2**window, vector), generator(window * 100 + vector)).to(torch.int8)
    return TrellisPart(rows, channels, taps, window, step_bits, vector, chain, codes, table,
                       scales(rows, channels, g, options.pop("col", False)), **options)


# name -> (shape, [(start, stop, spec, maker, options)]): every family, odd sizes, several parts, rotation
CASES = {
    "palette": ((7, 13), [(0, 13, "palette", lut, {"bits": 3})]),
    "palette_groups": ((5, 50), [(0, 50, "palette", lut, {"bits": 5, "group_size": 16, "col": True})]),
    "palette_rotated": ((9, 64), [(0, 64, "palette", lut, {"bits": 2, "rotation": 32, "rotation_seed": 7})]),
    "uniform": ((11, 17), [(0, 17, "uniform", lut, {"bits": 8, "uniform": True})]),
    "uniform_groups": ((3, 37, 3, 3), [(0, 37, "uniform", lut, {"bits": 4, "uniform": True, "group_size": 32})]),
    "additive": ((10, 21), [(0, 21, "additive", additive, {})]),
    "additive_conv": ((6, 10, 3, 3), [(0, 10, "additive", additive, {"num_codebooks": 1, "col": True})]),
    "product": ((13, 30), [(0, 30, "product", additive, {"bits": 6, "group": 2, "num_codebooks": 1, "blocks": 4})]),
    "trellis": ((45, 19), [(0, 19, "trellis", trellis, {})]),
    "trellis_half": ((33, 12), [(0, 12, "trellis", trellis, {"step_bits": 5, "vector": 2, "window": 12, "chain": 5})]),
    "trellis_conv": ((35, 32, 3, 3), [(0, 32, "trellis", trellis, {"rotation": 16, "chain": 2, "col": True})]),
    "trellis_split": ((40, 48, 3, 3), [(0, 32, "trellis", trellis, {"rotation": 32, "rotation_seed": 2}),
                                       (32, 48, "trellis", trellis, {"step_bits": 2})]),
    "mixed": ((5, 29), [(0, 8, "palette", lut, {"bits": 1}), (8, 15, "uniform", lut, {"bits": 6, "uniform": True}),
                        (15, 29, "additive", additive, {"bits": 4, "group": 3})]),
    "one": ((1, 1), [(0, 1, "palette", lut, {"bits": 1})]),
}
# Younger than the golden file, which holds CASES alone.
YOUNGER = {
    "additive_kernel": ((6, 10, 3, 3), [(0, 10, "additive", additive, {"group": 9, "order": 1, "col": True})]),
    "additive_kernel_odd": ((5, 9, 1, 3), [(0, 4, "product", additive, {"group": 5, "order": 1, "blocks": 2}),
                                           (4, 9, "additive", additive, {"group": 3, "order": 1})]),
}


def parts_of(name: str, seed: int = 0):
    """-> (shape, [(start, stop, spec, part)])"""
    shape, plan = {**CASES, **YOUNGER}[name]
    g = generator(1000 * seed + sum(map(ord, name)))
    taps = 1
    for size in shape[2:]:
        taps *= size
    return shape, [(start, stop, spec, maker(shape[0], stop - start, taps, g, **dict(options)))
                   for start, stop, spec, maker, options in plan]


def tables_of(parts) -> dict[int, torch.Tensor]:
    """Table id -> table of the trellis parts."""
    from vqpack.vq_core.record import part_table
    from vqpack.vq_core.table_record import table_id

    return {table_id(part_table(p)): p.table for *_, p in parts if isinstance(p, TrellisPart)}


def write_file(folder, name: str = "model", seed: int = 0, cases=tuple(CASES), metadata=None, **options):
    """A small complete file with one weight per case and some dense tensors -> its path."""
    from vqpack.vq_core.container import Writer

    with Writer(folder / f"{name}.safetensors", **options) as writer:
        fill(writer, seed, cases)
        return writer.close({"vqpack.architecture": "test", **(metadata or {})})


def fill(writer, seed: int = 0, cases=tuple(CASES)) -> None:
    """Add what write_file adds, skipping what an earlier run left."""
    from vqpack.vq_core.record import build_blob, part_table
    from vqpack.vq_core.table_record import table_id, table_key

    for case in cases:
        shape, parts = parts_of(case, seed)
        for *_, part in parts:
            if isinstance(part, TrellisPart):
                data = part_table(part)
                if table_key(table_id(data)) not in writer:
                    writer.add(table_key(table_id(data)), data)
        if f"{case}.weight" not in writer:
            writer.add_blob(f"{case}.weight", build_blob(shape, torch.float16, parts), {"case": case})
    for key, tensor in dense_tensors(seed).items():
        if key not in writer:
            writer.add(key, tensor)


def dense_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Dtypes and shapes that make alignment and padding work: odd bytes, scalars, empty."""
    g = generator(seed + 5)
    return {"norm.bias": torch.randn(7, generator=g).half(), "norm.weight": torch.randn(3, 5, generator=g),
            "position_ids": torch.arange(77)[None], "flag": integers(0, 255, (3,), g).to(torch.uint8),
            "scalar": torch.randn((), generator=g), "empty": torch.zeros(0, 4), "bf.ö 名": torch.ones(5).bfloat16(),
            "half.e4m3": torch.ones(9).to(torch.float8_e4m3fn)}
