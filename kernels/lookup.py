"""Lookup tables for decoding in plain torch: several weights per gather. Tables only; decode_torch.py uses them.

torch's CPU gather costs 1.0 to 1.8 ns for an item of any width up to 16 bytes, and 0.2 ns for a byte converted in
order (2.5 GHz Xeon, one thread), so the fewer gathers per weight the better until the table leaves the L2 cache.
"""
from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch

# One item per entry width in bytes. Only bits are moved, so complex128 is simply the 16-byte item.
ITEMS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}

# int32 gathers, one thread, 1 MB of L2: 1.0 ns from 2**16 items, 1.6 to 1.9 ns from 2**18 on a quiet machine, 7 ns
# on a loaded one. Two runs of 16 against 18 on a loaded machine disagreed, so the smaller table was taken.
MAX_INDEX_BITS = 16
MAX_ITEM_BYTES = 8

# Codes looked up together in a palette: the smallest octet fractions whose tables stay under 2**14 entries.
LUT_CODES = {1: 4, 2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 7: 2, 8: 1}


class Scratch:
    """Buffers of one decode call, kept from chunk to chunk: fresh pages cost more than the arithmetic on them."""

    def __init__(self, device: torch.device):
        self._device = device
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, name: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        """An uninitialized tensor [shape]; the next take of the same name and dtype reuses its memory."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != dtype:
            buffer = self._buffers[name] = torch.empty(size, dtype=dtype, device=self._device)
        return buffer[:size].view(shape)


def lookup(rows: torch.Tensor, index: torch.Tensor, scratch: Scratch) -> torch.Tensor:
    """rows [entries, k], index int64 [n, m] -> [n, m * k], row after row of rows[index], in rows' dtype.

    Widths without an item (k odd and the like) go through index_select, 2 to 4 times slower.
    """
    entries, k = rows.shape
    n, m = index.shape
    item = ITEMS.get(k * rows.element_size())
    if item is None or (item.is_complex and rows.device.type == "mps"):
        return rows.index_select(0, index.reshape(-1)).view(n, m * k)
    if rows.storage_offset() % k or not rows.is_contiguous():
        rows = rows.clone(memory_format=torch.contiguous_format)
    items = rows.view(item).view(1, entries).expand(n, entries)  # two dimensions: torch gathers 1-D on one thread
    return torch.gather(items, 1, index, out=scratch.take("found", item, n, m)).view(rows.dtype)


def palette_rows(values: torch.Tensor, bits: int) -> torch.Tensor:
    """values int16 [2**bits] -> int16 [2**(bits * k), k]: the values of k = LUT_CODES[bits] consecutive codes."""
    k = LUT_CODES[bits]
    index = torch.arange(2 ** (bits * k), device=values.device)
    digits = [(index >> (bits * i)) & (2**bits - 1) for i in range(k)]
    return torch.stack([values[digit] for digit in digits], 1)


@dataclass(frozen=True)
class TrellisLookup:
    """How a unit of 32 trellis steps is read: `steps` at a time from `rows`, indexed by bits of a 64-bit window."""

    steps: int                                         # steps looked up together
    rows: torch.Tensor                                 # int8 [2**index_bits, steps * vector]
    mask: int                                          # 2**index_bits - 1
    reads: tuple[tuple[int, int, int, torch.Tensor], ...]  # word, lookups [first, last) ending there, shifts [1, n, 1]


def trellis_lookup(table: torch.Tensor, window: int, step_bits: int) -> TrellisLookup:
    """The lookup for a table int8 [2**window, vector]; the last few are kept (512 KB each at most)."""
    key = (id(table), window, step_bits)
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key][1]
    made = _equal_table(table, window, step_bits) or _make(table, window, step_bits)
    with _lock:
        _kept[key] = (table, made)  # holding the table keeps its id from being given to another one
        while len(_kept) > KEEP:
            _kept.popitem(last=False)
    return made


KEEP = 16
_kept: OrderedDict[tuple, tuple[torch.Tensor, TrellisLookup]] = OrderedDict()
_lock = threading.Lock()


def _equal_table(table: torch.Tensor, window: int, step_bits: int) -> TrellisLookup | None:
    """A kept lookup whose table has the same contents; only on the CPU, where comparing 4 KB waits for nobody."""
    with _lock:
        candidates = [kept for (_, w, b), kept in _kept.items() if (w, b) == (window, step_bits)]
    for other, made in candidates:
        if table.device.type == other.device.type == "cpu" and torch.equal(table, other):
            return made
    return None


def _make(table: torch.Tensor, window: int, step_bits: int) -> TrellisLookup:
    vector = table.shape[1]
    steps = _steps_together(window, step_bits, vector)
    index_bits = window + (steps - 1) * step_bits
    index = torch.arange(2**index_bits, device=table.device)
    states = [(index >> (step_bits * i)) & (2**window - 1) for i in range(steps - 1, -1, -1)]
    rows = torch.cat([table[state] for state in states], 1)  # [2**index_bits, steps * vector]
    return TrellisLookup(steps, rows, 2**index_bits - 1, _reads(steps, step_bits, table.device))


def _steps_together(window: int, step_bits: int, vector: int) -> int:
    steps = 1
    while (2 * steps * vector <= MAX_ITEM_BYTES
           and window + (2 * steps - 1) * step_bits <= MAX_INDEX_BITS):
        steps *= 2
    return steps


def _reads(steps: int, step_bits: int, device: torch.device) -> tuple[tuple[int, int, int, torch.Tensor], ...]:
    """Group the lookups of a unit by the word their last bit is in."""
    ends = [(q + 1) * steps * step_bits for q in range(32 // steps)]  # bits of the unit up to the lookup's last
    reads = []
    for word in range(step_bits):
        inside = [q for q, end in enumerate(ends) if (end - 1) // 32 == word]
        if inside:
            shifts = torch.tensor([32 * (word + 1) - ends[q] for q in inside], device=device).view(1, -1, 1)
            reads.append((word, inside[0], inside[-1] + 1, shifts))
    return tuple(reads)
