"""Coding on a device that is short of memory: smaller batches, then the CPU; each step down is counted and told."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

Result = TypeVar("Result")

# What coding SDXL takes on a device, from the sizes of its buffers: the largest matrix in float32 (252 MB), a batch of
# 2**23 weights six times over (200 MB), back pointers (64 MB) and, without Triton, path costs (3 x 256 MB). Not yet
# measured on a GPU.
CODING_BYTES = 3 << 29
SHRINKS = (4, 16)                          # batches a quarter, then a sixteenth as large
_BATCHED = ("trellis",)                    # kinds whose batches are large on a device; the others work in small ones


@dataclass
class Fallbacks:
    """How many layers needed less memory than they were given at first."""

    smaller_batches: int = 0
    cpu: int = 0

    def __bool__(self) -> bool:
        return bool(self.smaller_batches or self.cpu)

    def __str__(self) -> str:
        """"" where there were none."""
        told = [f"{self.smaller_batches} layers in smaller batches"] * bool(self.smaller_batches)
        told += [f"{self.cpu} layers on the CPU"] * bool(self.cpu)
        return f"the device was short of memory: {' and '.join(told)}" if told else ""


def with_less_memory(code: Callable[..., Result], kind: str, device: str, fallbacks: Fallbacks) -> Result:
    """code(device) or, where the device is out of memory, code(device, shrink=4), 16, then code("cpu").

    Codes do not depend on the size of a batch; scales may differ in the last bit, as between kinds of devices.
    """
    if torch.device(device).type == "cpu":
        return code(device)
    for shrink in (1, *(SHRINKS if kind in _BATCHED else ())):
        try:
            result = code(device, **({"shrink": shrink} if shrink > 1 else {}))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            fallbacks.smaller_batches += shrink > 1
            return result
        release()                          # here the error, and the tensors its frames held, are gone
    fallbacks.cpu += 1
    return code("cpu")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device had no memory left; devices other than CUDA say so in words only."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()


def release() -> None:
    """Give back what torch keeps for later on CUDA devices."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
