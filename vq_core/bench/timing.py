"""How long something takes: warm-up, rotation over more inputs than a cache holds, median and spread.

On a GPU between two events around several calls, so that launches queue up as in a model; on a CPU by the clock.
"""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

COLD_BYTES = 256 << 20                     # inputs together; three times the L2 cache of the largest GPU (H200 50 MB)
WARM_UPS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float
    low: float                             # 20th percentile
    high: float                            # 80th
    calls: int

    def as_row(self, prefix: str = "") -> dict:
        """For JSON, in microseconds."""
        return {f"{prefix}us": round(self.median * 1e6, 2), f"{prefix}us_low": round(self.low * 1e6, 2),
                f"{prefix}us_high": round(self.high * 1e6, 2)}


def measure(call: Callable, inputs: Sequence, device: str, seconds: float = 0.3, most: int = 200) -> Timing:
    """Time call(input), inputs in turn, until `seconds` have passed (at least three rounds, at most `most`)."""
    warm_up = time.perf_counter()
    for index in range(WARM_UPS):
        call(inputs[index % len(inputs)])
        if time.perf_counter() - warm_up > seconds:
            break                          # a call that takes seconds is warm
    rounds = _cuda_rounds if torch.device(device).type == "cuda" else _clock_rounds
    found = rounds(call, inputs, torch.device(device), seconds, most)
    ordered = sorted(found)
    return Timing(statistics.median(ordered), ordered[len(ordered) // 5], ordered[-1 - len(ordered) // 5], len(ordered))


def copies_for(nbytes: int, device: str) -> int:
    """How many inputs of so many bytes make a rotation that no cache holds; one on the CPU, where calls are long."""
    return max(1, min(64, -(-COLD_BYTES // max(1, nbytes)))) if torch.device(device).type == "cuda" else 1


def _clock_rounds(call, inputs, device, seconds: float, most: int) -> list[float]:
    found, began = [], time.perf_counter()
    while len(found) < 3 or (time.perf_counter() - began < seconds and len(found) < most):
        start = time.perf_counter()
        call(inputs[len(found) % len(inputs)])
        _wait(device)
        found.append(time.perf_counter() - start)
    return found


def _cuda_rounds(call, inputs, device, seconds: float, most: int) -> list[float]:
    found, began, batch = [], time.perf_counter(), max(4, len(inputs))
    while len(found) < 3 or (time.perf_counter() - began < seconds and len(found) < most):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for index in range(batch):
            call(inputs[index % len(inputs)])
        last.record()
        last.synchronize()
        found.append(first.elapsed_time(last) / 1e3 / batch)
    return found


def _wait(device: torch.device) -> None:
    if device.type in ("mps", "xpu"):
        getattr(torch, device.type).synchronize()
