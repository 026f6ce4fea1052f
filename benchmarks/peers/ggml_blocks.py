"""ggml's K-quant blocks decoded from their published layout (ggml-common.h of llama.cpp): 256 weights a block.

Used to count bytes, and to read what a real ggml quantizer wrote independently of its own decoder.
"""
from __future__ import annotations

import numpy as np

SUPER = 256                                # weights a block
BLOCK_BYTES = {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176}
TYPE_IDS = {"Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13}      # enum ggml_type


def decode(blocks: np.ndarray, kind: str) -> np.ndarray:
    """uint8 [n, BLOCK_BYTES[kind]] -> float32 [n, 256]"""
    return {"Q2_K": _q2, "Q3_K": _q3, "Q4_K": _q4, "Q5_K": _q5}[kind](blocks).astype(np.float32)


def _half(blocks, at):
    return blocks[:, at:at + 2].copy().view(np.float16).astype(np.float32)          # [n, 1]


def _q2(blocks):
    """scales 16 x (4-bit scale, 4-bit minimum), codes 64, d, dmin; w = d * scale * q - dmin * minimum"""
    pairs, codes = blocks[:, :16], blocks[:, 16:80]
    d, dmin = _half(blocks, 80), _half(blocks, 82)
    q = _planes(codes, 4, 2, 3)                                                     # [n, 256]
    scale, low = d * (pairs & 15), dmin * (pairs >> 4)                              # [n, 16]
    return np.repeat(scale, 16, 1) * q - np.repeat(low, 16, 1)


def _q3(blocks):
    """high bits 32, low bits 64, 16 six-bit scales in 12 bytes, d; w = d * (scale - 32) * (q - 4 * not high)"""
    high, low, packed, d = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108], _half(blocks, 108)
    q = _planes(low, 4, 2, 3).astype(np.int32)
    top = np.concatenate([(high >> bit) & 1 for bit in range(8)], 1)                # [n, 256]
    q = q - 4 * (top == 0)
    fours = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], 1)             # [n, 16]
    twos = np.concatenate([(packed[:, 8:12] >> shift) & 3 for shift in (0, 2, 4, 6)], 1)
    scale = d * ((fours | (twos << 4)).astype(np.int32) - 32)
    return np.repeat(scale, 16, 1) * q


def _scales_of_eight(packed):
    """12 bytes -> 8 six-bit scales and 8 six-bit minimums, [n, 8] each"""
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], 1)
    low = np.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], 1)
    return scale.astype(np.float32), low.astype(np.float32)


def _q4(blocks):
    """d, dmin, 12 bytes of scales, codes 128; w = d * scale * q - dmin * minimum, 32 weights a scale"""
    return _with_minimum(blocks, _planes(blocks[:, 16:144], 2, 4, 15))


def _q5(blocks):
    """as Q4_K with 32 bytes of fifth bits before the 128 of codes"""
    fifth = np.concatenate([(blocks[:, 16:48] >> bit) & 1 for bit in range(8)], 1)  # [n, 256]
    return _with_minimum(blocks, _planes(blocks[:, 48:176], 2, 4, 15) + 16.0 * fifth)


def _with_minimum(blocks, q):
    scale, low = _scales_of_eight(blocks[:, 4:16])
    scale, low = _half(blocks, 0) * scale, _half(blocks, 2) * low
    return np.repeat(scale, 32, 1) * q - np.repeat(low, 32, 1)


def _planes(codes, count, width, mask):
    """Bytes in runs of 32, each run holding `count` planes of 32 codes, lowest bits first -> float32 [n, 256]"""
    runs = codes.reshape(len(codes), -1, 32)                                        # [n, runs, 32]
    planes = np.stack([(runs >> (width * i)) & mask for i in range(count)], 2)      # [n, runs, count, 32]
    return planes.reshape(len(codes), -1).astype(np.float32)
