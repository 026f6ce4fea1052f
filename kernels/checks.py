"""What every part must satisfy before any backend touches it: shapes, dtypes, ranges, devices."""
from __future__ import annotations

import torch

from .packing import MAX_CODE_BITS, UNIT_STEPS
from .parts import AdditivePart, LutPart, Part, Scales, TrellisPart
from .rotation import MAX_BLOCK

MAX_WINDOW = 16  # a table of 64 Ki entries; the spec uses 8 and 12


def check_part(part: Part) -> None:
    """Raise TypeError or ValueError that names the field, what was expected and what came."""
    if not isinstance(part, (LutPart, AdditivePart, TrellisPart)):
        raise TypeError(f"a part must be LutPart, AdditivePart or TrellisPart, got {type(part).__name__}")
    for name in ("out_features", "channels", "taps"):
        _range(name, getattr(part, name), 1, 2**31 - 1)
    cols = part.channels * part.taps
    {LutPart: _check_lut, AdditivePart: _check_additive, TrellisPart: _check_trellis}[type(part)](part, cols)
    _check_scales(part.scales, part, cols)
    _check_rotation(part)


def _check_lut(part: LutPart, cols: int) -> None:
    _range("bits", part.bits, 1, 8)
    _tensor("codes", part.codes, torch.uint8, [part.out_features, -(-cols // 8), part.bits], part)
    if (part.values is None) == (part.zero_points is None):
        raise ValueError("a lut part needs either values (palette) or zero_points (uniform), "
                         f"got {'neither' if part.values is None else 'both'}")
    if part.values is not None:
        _tensor("values", part.values, torch.int16, [2**part.bits], part)
        return
    shape = [part.out_features]
    if part.zero_points.ndim == 2:
        _range("scales.group_size", part.scales.group_size, 1, 2**31 - 1)
        shape.append(-(-cols // part.scales.group_size))
    _tensor("zero_points", part.zero_points, torch.uint8, shape, part)


def _check_additive(part: AdditivePart, cols: int) -> None:
    _range("bits", part.bits, 1, MAX_CODE_BITS)
    _range("group", part.group, 1, 2**16)
    _range("order", part.order, 0, 1)
    if part.codebooks.ndim != 4:
        raise ValueError("codebooks must be [blocks, num_codebooks, codebook_size, group], "
                         f"got shape {list(part.codebooks.shape)}")
    blocks, num_codebooks, size, _ = part.codebooks.shape
    groups = -(-cols // part.group)
    _range("codebooks' blocks", blocks, 1, groups)
    _range("num_codebooks", num_codebooks, 1, 255)
    _range("codebook_size", size, 1, 2**part.bits)
    _tensor("codebooks", part.codebooks, torch.int16, [blocks, num_codebooks, size, part.group], part)
    _tensor("codes", part.codes, torch.uint8, [part.out_features, -(-groups * num_codebooks // 8), part.bits], part)


def _check_trellis(part: TrellisPart, cols: int) -> None:
    _range("window", part.window, 1, MAX_WINDOW)
    _range("step_bits", part.step_bits, 1, MAX_CODE_BITS)
    _range("vector", part.vector, 1, 2)
    _range("chain", part.chain, 1, 2**31 - 1)
    units = -(-part.out_features // (part.vector * UNIT_STEPS))
    _tensor("codes", part.codes, torch.int32, [units, part.step_bits, cols], part)
    _tensor("table", part.table, torch.int8, [2**part.window, part.vector], part)


def _check_scales(scales: Scales, part: Part, cols: int) -> None:
    if scales.row is not None and scales.group is not None:
        raise ValueError("scales must give row or group scales, got both")
    if scales.row is not None:
        _tensor("scales.row", scales.row, torch.float16, [part.out_features], part)
    if scales.group is not None:
        _range("scales.group_size", scales.group_size, 1, 2**31 - 1)
        _tensor("scales.group", scales.group, torch.float16, [part.out_features, -(-cols // scales.group_size)], part)
    if scales.col is not None:
        _tensor("scales.col", scales.col, torch.float16, [part.channels], part)


def _check_rotation(part: Part) -> None:
    block = part.rotation
    if block and (not 1 <= block <= MAX_BLOCK or block & (block - 1) or part.channels % block):
        raise ValueError(f"rotation must be 0 or a power of two up to {MAX_BLOCK} that divides the "
                         f"{part.channels} channels, got {block}")
    _range("rotation_seed", part.rotation_seed, 0, 2**32 - 1)


def _range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in {low} to {high}, got {value}")


def _tensor(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: list[int], part: Part) -> None:
    if tensor.dtype != dtype or list(tensor.shape) != shape:
        raise ValueError(f"{name} must be {dtype} {shape}, got {tensor.dtype} {list(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {list(tensor.stride())} for {shape}")
    if tensor.device != part.codes.device:
        raise ValueError(f"{name} must be on {part.codes.device} with the codes, got {tensor.device}")
