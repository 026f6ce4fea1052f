"""Coded weights from random bits, of any shape and spec, without encoding: as large and as fast as real ones."""
from __future__ import annotations

import math

import torch

from ...kernels.parts import AdditivePart, LutPart, Part, Scales, TrellisPart
from ..layout import Kind
from ..record import build_blob, parse_blob, part_table
from ..spec import AdditiveSpec, PaletteSpec, ProductSpec, Spec, TrellisSpec, UniformSpec
from ..table_record import table_id
from ..tables import get_table
from ..weight import CodedWeight, Tables

_TABLES = Tables()


def random_weight(shape: tuple[int, ...], spec: Spec, seed: int = 0, device: str = "cpu") -> CodedWeight:
    """A coded weight of this logical shape whose decoded rows have length near 1, from a seed."""
    part = random_part(shape[0], shape[1], math.prod(shape[2:]), spec, seed)
    if isinstance(part, TrellisPart):
        _TABLES.setdefault(table_id(part_table(part)), part.table)
    blob = build_blob(shape, torch.float16, [(0, shape[1], spec.kind, part)])
    return parse_blob(blob, _TABLES, "random").to(device)


def other_codes(weight: CodedWeight) -> CodedWeight:
    """The same weight with random codes of its own, drawn on its device: a model's worth takes seconds."""
    blob = weight.blob.clone()
    for sections in weight.layout.views:
        start, stop = sections[Kind.codes][:2]
        blob[start:stop].random_(0, 256)
    return CodedWeight(blob, weight.layout, weight.tables)


def random_part(rows: int, channels: int, taps: int, spec: Spec, seed: int = 0) -> Part:
    """One part for the whole of a weight [rows, taps * channels], on the CPU."""
    cols, bits = channels * taps, _Bits(seed)
    if isinstance(spec, TrellisSpec):
        block = spec.rotation if spec.rotation > 0 and channels % spec.rotation == 0 else 0
        table = get_table(spec.window, spec.step_bits, spec.vector)[0]              # [2**window, vector]
        codes = bits.take(-(-rows // (32 * spec.vector)), spec.step_bits, cols, 4).view(torch.int32).squeeze(-1)
        scales = _scales(rows, cols, float(table.float().std()) * math.sqrt(max(1, block)))
        return TrellisPart(rows, channels, taps, spec.window, spec.step_bits, spec.vector, 1, codes, table, scales,
                           rotation=block, rotation_seed=seed)
    if isinstance(spec, PaletteSpec | UniformSpec):
        codes, uniform = bits.take(rows, -(-cols // 8), spec.bits), isinstance(spec, UniformSpec)
        values = None if uniform else torch.linspace(-127, 127, 2**spec.bits).to(torch.int16)   # [2**bits]
        zeros = torch.full((rows,), 2 ** (spec.bits - 1), dtype=torch.uint8) if uniform else None
        deviation = 2**spec.bits / 3.5 if uniform else 75.0
        return LutPart(rows, channels, taps, spec.bits, codes, _scales(rows, cols, deviation), values=values,
                       zero_points=zeros)
    return _additive(rows, channels, taps, spec, bits)


def _additive(rows: int, channels: int, taps: int, spec: AdditiveSpec | ProductSpec, bits: _Bits) -> AdditivePart:
    cols, group = channels * taps, spec.group
    books = spec.num_codebooks if isinstance(spec, AdditiveSpec) else 1
    code_bits = spec.codebook_size.bit_length() - 1
    count = -(-(-(-cols // group) * books) // 8)
    codebooks = bits.take(1, books, spec.codebook_size, group).view(torch.int8).to(torch.int16)  # [1, M, K, g]
    return AdditivePart(rows, channels, taps, code_bits, group, bits.take(rows, count, code_bits), codebooks,
                        _scales(rows, cols, 75.0 * math.sqrt(books)))


def _scales(rows: int, cols: int, deviation: float) -> Scales:
    """Row scales that bring integers of this standard deviation to 1/sqrt(cols)."""
    return Scales(torch.tensor(1 / (deviation * math.sqrt(cols))).item(), row=torch.ones(rows, dtype=torch.float16))


class _Bits:
    """Random bytes from a seed."""

    def __init__(self, seed: int):
        self._generator = torch.Generator().manual_seed(seed)

    def take(self, *shape: int) -> torch.Tensor:
        """uint8 [*shape]"""
        words = -(-math.prod(shape) // 8)
        drawn = torch.empty(words, dtype=torch.int64).random_(-2**63, 2**63 - 1, generator=self._generator)
        return drawn.view(torch.uint8)[:math.prod(shape)].view(shape).clone()
