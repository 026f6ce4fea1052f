"""The slow truth: docs/format.md section 4 as plainly as possible, on the CPU. Every fast path is compared with it."""
from __future__ import annotations

import numpy as np
import torch

from .parts import AdditivePart, LutPart, Part, Scales, TrellisPart
from .rotation import signs


def decode_part(part: Part, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Weights of one part, [out_features, taps * channels] on the CPU."""
    integers = decode_integers(part)  # [out_features, cols]
    if part.rotation:
        integers = _unrotate(integers, part)
    weights = scale(torch.from_numpy(integers).to(torch.float32), part.scales, part.channels, part.taps)
    return weights.to(dtype)


def decode(part: Part, start: int, stop: int, out: torch.Tensor) -> None:
    """The backend `reference` of dispatch.py: everything is decoded, rows start..stop are kept.

    out [rows, taps, channels]; int8 asks for decode_integers.
    """
    whole = torch.from_numpy(decode_integers(part)) if out.dtype == torch.int8 else decode_part(part, out.dtype)
    out.copy_(whole[start:stop].view(out.shape))


def decode_integers(part: Part) -> np.ndarray:
    """Integers of one part before rotation, int64 [out_features, cols]."""
    if isinstance(part, LutPart):
        return _lut_integers(part)
    if isinstance(part, AdditivePart):
        return _additive_integers(part)
    if isinstance(part, TrellisPart):
        return _trellis_integers(part)
    raise TypeError(f"a part must be LutPart, AdditivePart or TrellisPart, got {type(part).__name__}")


def scale(integers: torch.Tensor, scales: Scales, channels: int, taps: int) -> torch.Tensor:
    """The float32 products of docs/format.md section 4, in their order. integers is float32 [rows, cols]."""
    rows, cols = integers.shape
    gain = torch.tensor(scales.gain, dtype=torch.float32)
    if scales.row is not None:
        s = (scales.row.cpu().to(torch.float32) * gain)[:, None]                    # [rows, 1]
    elif scales.group is not None:
        group_of = torch.arange(cols) // scales.group_size
        s = (scales.group.cpu().to(torch.float32) * gain)[:, group_of]              # [rows, cols]
    else:
        s = gain
    weights = integers * s
    if scales.col is not None:
        weights = weights * scales.col.cpu().to(torch.float32).repeat(taps)         # [cols]
    return weights


def _codes(packed: torch.Tensor, bits: int, count: int) -> np.ndarray:
    """uint8 [rows, octets, bits] -> int64 [rows, count]: a row is one stream of bits, lowest bit first."""
    stream = np.unpackbits(packed.cpu().numpy().reshape(packed.shape[0], -1), axis=1, bitorder="little")
    stream = stream[:, : count * bits].reshape(-1, count, bits).astype(np.int64)    # [rows, count, bits]
    return stream @ (1 << np.arange(bits, dtype=np.int64))


def _lut_integers(part: LutPart) -> np.ndarray:
    cols = part.channels * part.taps
    codes = _codes(part.codes, part.bits, cols)                                     # [out_features, cols]
    if part.values is not None:
        return part.values.cpu().numpy().astype(np.int64)[codes]
    zeros = part.zero_points.cpu().numpy().astype(np.int64)                         # [out_features] or [.., groups]
    if zeros.ndim == 1:
        return codes - zeros[:, None]
    return codes - zeros[:, np.arange(cols) // part.scales.group_size]


def _additive_integers(part: AdditivePart) -> np.ndarray:
    cols = part.channels * part.taps
    books = part.codebooks.cpu().numpy().astype(np.int64)
    books = np.pad(books, ((0, 0), (0, 0), (0, 2**part.bits - books.shape[2]), (0, 0)))  # unknown codes mean zero
    blocks, num_codebooks, _, group = books.shape                                   # [blocks, M, 2**bits, group]
    groups = -(-cols // group)
    codes = _codes(part.codes, part.bits, groups * num_codebooks).reshape(-1, groups, num_codebooks)
    integers = np.zeros((part.out_features, groups * group), dtype=np.int64)
    for p in range(groups):
        for m in range(num_codebooks):
            integers[:, p * group : (p + 1) * group] += books[p * blocks // groups, m, codes[:, p, m]]
    integers = integers[:, :cols]
    if part.order == 1:                                                             # from (channel, tap)
        integers = integers.reshape(-1, part.channels, part.taps).transpose(0, 2, 1).reshape(-1, cols)
    return integers


def _trellis_integers(part: TrellisPart) -> np.ndarray:
    units, step_bits, cols = part.codes.shape
    words = part.codes.cpu().numpy().view(np.uint32).transpose(2, 0, 1)             # [cols, units, step_bits]
    stream = np.unpackbits(words.astype(">u4", order="C").view(np.uint8).reshape(cols, -1), axis=1)
    stream = stream.reshape(cols, units * 32, step_bits).astype(np.int64)           # first bit first
    steps = stream @ (1 << np.arange(step_bits - 1, -1, -1, dtype=np.int64))        # [cols, units * 32]
    table = part.table.cpu().numpy().astype(np.int64)                               # [2**window, vector]
    integers = np.zeros((units * 32 * part.vector, cols), dtype=np.int64)
    for col in range(cols):
        if col % part.chain == 0:
            state = 0
        for t in range(units * 32):
            state = ((state << step_bits) | int(steps[col, t])) & (2**part.window - 1)
            integers[t * part.vector : (t + 1) * part.vector, col] = table[state]
    return integers[: part.out_features]


def _unrotate(integers: np.ndarray, part: Part) -> np.ndarray:
    block = part.rotation
    i = np.arange(block)
    parity = np.array([[bin(a & b).count("1") & 1 for b in i] for a in i])
    matrix = 1 - 2 * parity                                                         # [block, block]
    rows, cols = integers.shape
    mixed = (integers.reshape(rows, cols // block, block) @ matrix).reshape(rows, cols)
    return mixed * np.tile(signs(part.rotation_seed, part.channels).numpy().astype(np.int64), part.taps)
