"""What a decoder is given: frozen records of tensors and integers, one per storage family (docs/format.md, 4).

A part is the matrix [out_features, cols], cols = taps * channels, column `tap * channels + channel`.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scales:
    """How decoded integers become weights; at most one of `row` and `group` is given."""

    gain: float                            # float32 value; table step and 1/sqrt(rotation block) are inside
    row: torch.Tensor | None = None        # float16 [out_features]
    group: torch.Tensor | None = None      # float16 [out_features, ceil(cols / group_size)]
    group_size: int = 0
    col: torch.Tensor | None = None        # float16 [channels]


@dataclass(frozen=True)
class LutPart:
    """Scalar codes: palette (values given) or uniform (zero_points given)."""

    out_features: int
    channels: int
    taps: int
    bits: int                              # of one code, 1 to 8
    codes: torch.Tensor                    # uint8 [out_features, ceil(cols / 8), bits]
    scales: Scales
    values: torch.Tensor | None = None     # int16 [2**bits] (palette)
    zero_points: torch.Tensor | None = None  # uint8 [out_features] or [out_features, groups] (uniform)
    rotation: int = 0                      # Hadamard block, 0 = none
    rotation_seed: int = 0


@dataclass(frozen=True)
class AdditivePart:
    """Sum of num_codebooks entries over a group of weights; product codes have several position blocks."""

    out_features: int
    channels: int
    taps: int
    bits: int                              # of one code, 1 to 16
    group: int                             # weights along a row coded together
    codes: torch.Tensor                    # uint8 [out_features, ceil(groups * num_codebooks / 8), bits]
    codebooks: torch.Tensor                # int16 [blocks, num_codebooks, codebook_size, group]
    scales: Scales
    rotation: int = 0
    rotation_seed: int = 0
    order: int = 0                         # of the coded columns: 0 (tap, channel), 1 (channel, tap)


@dataclass(frozen=True)
class TrellisPart:
    """A window of `window` bits slid over `step_bits` bits a step indexes a table; a step covers `vector` rows."""

    out_features: int
    channels: int
    taps: int
    window: int                            # L
    step_bits: int                         # B
    vector: int                            # V, 1 or 2
    chain: int                             # columns in one sequence
    codes: torch.Tensor                    # int32 view of uint32 words [units, step_bits, cols]
    table: torch.Tensor                    # int8 [2**window, vector]
    scales: Scales
    rotation: int = 0
    rotation_seed: int = 0


Part = LutPart | AdditivePart | TrellisPart
