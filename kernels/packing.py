"""Bit packing of codes and trellis steps (docs/format.md, 4); says nothing about what the bits mean."""
from __future__ import annotations

import torch

UNIT_STEPS = 32        # steps in one trellis unit: any step width then fills whole 32-bit words
MAX_CODE_BITS = 16


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack integer codes [rows, n] of `bits` (1 to 16) -> uint8 [rows, ceil(n / 8), bits].

    Eight codes form one little-endian integer of `bits` bytes; rows are padded with zero codes.
    Raises ValueError for a code outside [0, 2**bits), TypeError for anything but an integer tensor.
    """
    _check_integers(codes, bits, "codes")
    rows, n = codes.shape
    octets = -(-n // 8)
    padded = torch.zeros(rows, octets * 8, dtype=torch.int32, device=codes.device)  # [rows, octets * 8]
    padded[:, :n] = codes
    lanes = padded.view(rows, octets, 8)                                            # [rows, octets, 8]
    packed = torch.zeros(rows, octets, bits, dtype=torch.int32, device=codes.device)  # [rows, octets, bits]
    for lane, byte, shift in _overlaps(bits):
        packed[:, :, byte] |= _shift_left(lanes[:, :, lane], shift) & 255
    return packed.to(torch.uint8)


def unpack_codes(packed: torch.Tensor, bits: int, n: int) -> torch.Tensor:
    """Inverse of pack_codes: uint8 [rows, ceil(n / 8), bits] -> int32 [rows, n]."""
    rows, octets, width = packed.shape
    if packed.dtype != torch.uint8 or width != bits or octets != -(-n // 8):
        raise ValueError(f"packed codes must be uint8 [rows, {-(-n // 8)}, {bits}] for {n} codes of {bits} bits, "
                         f"got {packed.dtype} {list(packed.shape)}")
    codes = torch.zeros(rows, octets, 8, dtype=torch.int32, device=packed.device)   # [rows, octets, 8]
    for lane, byte, shift in _overlaps(bits):
        codes[:, :, lane] |= _shift_left(packed[:, :, byte].to(torch.int32), -shift) & (2**bits - 1)
    return codes.view(rows, octets * 8)[:, :n]


def pack_trellis(steps: torch.Tensor, step_bits: int) -> torch.Tensor:
    """Pack step codes [num_steps, cols] -> int32 words [ceil(num_steps / 32), step_bits, cols].

    The first step is in the highest bits of word 0; steps beyond num_steps are zero.
    Raises ValueError for a code outside [0, 2**step_bits), TypeError for anything but an integer tensor.
    """
    _check_integers(steps, step_bits, "trellis steps")
    num_steps, cols = steps.shape
    units = -(-num_steps // UNIT_STEPS)
    padded = torch.zeros(units * UNIT_STEPS, cols, dtype=torch.int64, device=steps.device)  # [units * 32, cols]
    padded[:num_steps] = steps
    padded = padded.view(units, UNIT_STEPS, cols)
    words = torch.zeros(units, step_bits, cols, dtype=torch.int64, device=steps.device)     # [units, step_bits, cols]
    for step, word, shift in _step_overlaps(step_bits):
        words[:, word] |= _shift_left(padded[:, step], shift) & 0xFFFFFFFF
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_trellis(words: torch.Tensor, step_bits: int, num_steps: int) -> torch.Tensor:
    """Inverse of pack_trellis: int32 words [units, step_bits, cols] -> int32 [num_steps, cols]."""
    units, width, cols = words.shape
    if words.dtype != torch.int32 or width != step_bits or units != -(-num_steps // UNIT_STEPS):
        raise ValueError(f"trellis words must be int32 [{-(-num_steps // UNIT_STEPS)}, {step_bits}, cols] for "
                         f"{num_steps} steps of {step_bits} bits, got {words.dtype} {list(words.shape)}")
    steps = torch.zeros(units, UNIT_STEPS, cols, dtype=torch.int32, device=words.device)    # [units, 32, cols]
    unsigned = words.to(torch.int64) & 0xFFFFFFFF                                           # [units, step_bits, cols]
    for step, word, shift in _step_overlaps(step_bits):
        steps[:, step] |= (_shift_left(unsigned[:, word], -shift) & (2**step_bits - 1)).to(torch.int32)
    return steps.view(units * UNIT_STEPS, cols)[:num_steps]


def _overlaps(bits: int):
    """(code, byte, left shift of the code inside the byte) for every pair of the eight codes that share bits."""
    for lane in range(8):
        for byte in range(lane * bits // 8, (lane * bits + bits - 1) // 8 + 1):
            yield lane, byte, lane * bits - 8 * byte


def _step_overlaps(step_bits: int):
    """(step, word, left shift of the step inside the word) for every pair of a unit that share bits."""
    for step in range(UNIT_STEPS):
        for word in range(step * step_bits // 32, (step * step_bits + step_bits - 1) // 32 + 1):
            yield step, word, 32 * (word + 1) - (step + 1) * step_bits


def _shift_left(values: torch.Tensor, shift: int) -> torch.Tensor:
    return values << shift if shift >= 0 else values >> -shift


def _check_integers(values: torch.Tensor, bits: int, what: str) -> None:
    if not 1 <= bits <= MAX_CODE_BITS:
        raise ValueError(f"{what} must have 1 to {MAX_CODE_BITS} bits, got {bits}")
    if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool:
        raise TypeError(f"{what} must be an integer tensor, got {values.dtype}")
    if values.ndim != 2:
        raise ValueError(f"{what} must have two dimensions, got shape {list(values.shape)}")
    if values.numel() and not (0 <= int(values.min()) and int(values.max()) < 2**bits):
        raise ValueError(f"{what} must lie in [0, {2**bits}) for {bits} bits, "
                         f"got {int(values.min())} to {int(values.max())}")
