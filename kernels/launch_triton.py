"""Owns one call of a Triton kernel as data: what runs on a GPU, and what compile checks compile without one."""
from __future__ import annotations

import contextlib
import functools
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton

# No compiler, no driver, no libcuda.so, another Triton's interface: what machines are known to lack. Self-tests turn
# these into a reason.
FAILURES = (triton.TritonError, subprocess.SubprocessError, RuntimeError, ValueError, TypeError, AttributeError,
            ImportError, OSError)


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: what runs and what compile checks compile."""

    kernel: object
    grid: tuple[int, ...]
    arguments: dict[str, object]
    constants: dict[str, object]
    num_warps: int

    def run(self, device: torch.device) -> None:
        """Start it on the device."""
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.kernel[self.grid](**self.arguments, **self.constants, num_warps=self.num_warps)


def merged(calls: Sequence[Launch], pointers: tuple[str, ...]) -> list[Launch]:
    """The same work in fewer calls: those that differ in `pointers` and gain alone become one.

    Its kernel finds addresses and gains in table_ptr, int64 [calls, pointers + 1], by program_id(1), where its constant
    GROUPED is set. Addresses that are no multiples of 16 stay apart: a kernel is compiled for those that are.
    """
    groups: dict[object, list[Launch]] = {}
    for number, call in enumerate(calls):
        aligned = all(call.arguments[name].data_ptr() % 16 == 0 for name in pointers)
        groups.setdefault(_likeness(call, pointers) if aligned else number, []).append(call)
    return [group[0] if len(group) == 1 else _merge(group, pointers) for group in groups.values()]


def _likeness(call: Launch, pointers: tuple[str, ...]) -> tuple:
    """Equal for calls that can be merged."""
    plain = tuple((name, value.data_ptr() if isinstance(value, torch.Tensor) else value)
                  for name, value in call.arguments.items() if name not in (*pointers, "gain", "table_ptr"))
    types = tuple(call.arguments[name].dtype for name in pointers)
    return call.grid, call.num_warps, tuple(call.constants.items()), plain, types


def _merge(group: list[Launch], pointers: tuple[str, ...]) -> Launch:
    first = group[0]
    numbers = tuple((*(call.arguments[name].data_ptr() for name in pointers), _bits(call.arguments["gain"]))
                    for call in group)
    table = _table(numbers, first.arguments[pointers[0]].device)                           # [calls, pointers + 1]
    return replace(first, grid=(*first.grid, len(group)), arguments={**first.arguments, "table_ptr": table},
                   constants={**first.constants, "GROUPED": True})


@functools.lru_cache(maxsize=4096)
def _table(numbers: tuple[tuple[int, ...], ...], device: torch.device) -> torch.Tensor:
    """Kept by the addresses themselves: weights that stay where they are need no copy to the device."""
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def _bits(value: float) -> int:
    return struct.unpack("<i", struct.pack("<f", value))[0]
