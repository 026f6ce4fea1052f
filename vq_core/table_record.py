"""The bytes of a shared trellis table (docs/format.md, 5): 64-byte head, then int8 entries; its id is their CRC-32."""
from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import torch

from .errors import FormatError

PREFIX = "vq.tables."
_HEAD = struct.Struct("<8sHBBBBI46s")
_MAGIC, _VERSION, _I8 = b"VQTABLE\0", 1, 1


@dataclass(frozen=True)
class TableRecord:
    """One shared table as stored."""

    window: int
    step_bits: int
    vector: int
    values: torch.Tensor                   # int8 [2**window, vector]


def pack_table(values: torch.Tensor, window: int, step_bits: int, vector: int) -> torch.Tensor:
    """int8 [2**window, vector] -> uint8 [64 + 2**window * vector]."""
    if values.dtype != torch.int8 or tuple(values.shape) != (1 << window, vector):
        raise FormatError(f"a trellis table of window {window} must be int8 [{1 << window}, {vector}], "
                          f"got {values.dtype} {list(values.shape)}")
    head = _HEAD.pack(_MAGIC, _VERSION, window, step_bits, vector, _I8, 1 << window, b"")
    data = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return torch.cat([torch.frombuffer(bytearray(head), dtype=torch.uint8), data])


def table_id(data: torch.Tensor) -> int:
    """CRC-32 of a packed table, uint8 [bytes]."""
    return zlib.crc32(data.cpu().contiguous().numpy())


def table_key(identity: int) -> str:
    """The key a table is stored under."""
    return f"{PREFIX}{identity:08x}"


def parse_table(data: torch.Tensor, key: str) -> TableRecord:
    """Inverse of pack_table, as a view of `data`; FormatError names the key. Does not check the id."""
    if data.dtype != torch.uint8 or data.dim() != 1 or data.numel() < _HEAD.size:
        raise FormatError(f"table '{key}' is damaged: expected U8 of at least {_HEAD.size} bytes, "
                          f"got {data.dtype} {list(data.shape)}")
    fields = _HEAD.unpack(bytes(data[:_HEAD.size].cpu().numpy()))
    magic, version, window, step_bits, vector, dtype, entries, zeros = fields
    if magic != _MAGIC:
        raise FormatError(f"table '{key}' is damaged: it does not begin with VQTABLE")
    if version != _VERSION:
        raise FormatError(f"table '{key}' has version {version}, this program reads version {_VERSION}: "
                          f"install a newer vqpack")
    fits = 1 <= window <= 16 and vector in (1, 2) and 1 <= step_bits <= window and entries == 1 << window
    if not fits or dtype != _I8 or any(zeros) or data.numel() != _HEAD.size + entries * vector:
        raise FormatError(f"table '{key}' is damaged: window {window}, {step_bits} bits and {vector} weights a step, "
                          f"{entries} entries in {data.numel()} bytes do not belong together")
    return TableRecord(window, step_bits, vector, data[_HEAD.size:].view(torch.int8).view(entries, vector))
