"""Memory that decoded weights share: each is decoded where the one before it was, multiplied, and given back.

A fresh tensor for each layer and call costs page faults on a CPU (decoding is 1.2 to 1.5 times faster into memory that
is there: benchmarks/results/decode_cpu.json) and, on a GPU, spreads over more memory than its L2 cache holds.
"""
from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

from .weight import CodedWeight, shaped

MOST_BYTES = 256 << 20                     # of one buffer; SDXL's largest weight has 118 MB in float32
MOST_IDLE = 2                              # buffers kept between calls: one in the source's dtype, one converted


class ScratchPool:
    """Lends buffers by device and stream, and keeps the largest that was asked for.

    A buffer that is lent is lent to nobody else, in whatever thread. Given back, it may be written again at once: on a
    GPU that runs after what was queued on the same stream before, and another stream has buffers of its own.
    """

    def __init__(self, most_bytes: int = MOST_BYTES):
        self.most_bytes = most_bytes
        self._idle: dict[tuple[str, int], list[torch.Tensor]] = {}          # (device, stream) -> uint8 [bytes] each
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lend(self, numel: int, dtype: torch.dtype, device: torch.device) -> Iterator[torch.Tensor]:
        """A tensor [numel] that is yours until the block ends; it holds whatever was there before."""
        nbytes, place = numel * dtype.itemsize, _place(device)
        if nbytes > self.most_bytes:
            yield torch.empty(numel, dtype=dtype, device=device)
            return
        buffer = self._take(place)
        if buffer is None or buffer.numel() < nbytes:
            buffer = None                  # let go of it first
            buffer = torch.empty(nbytes, dtype=torch.uint8, device=device)       # [bytes]
        try:
            yield buffer[:nbytes].view(dtype)
        finally:
            self._give_back(place, buffer)

    def held_bytes(self) -> int:
        """Bytes of the buffers nobody uses at the moment."""
        with self._lock:
            return sum(buffer.numel() for idle in self._idle.values() for buffer in idle)

    def clear(self) -> None:
        """Let go of every buffer that nobody uses."""
        with self._lock:
            self._idle.clear()

    def _take(self, place: tuple[str, int]) -> torch.Tensor | None:
        with self._lock:
            idle = self._idle.get(place)
            return idle.pop() if idle else None

    def _give_back(self, place: tuple[str, int], buffer: torch.Tensor) -> None:
        with self._lock:
            idle = self._idle.setdefault(place, [])
            idle.append(buffer)
            idle.sort(key=torch.Tensor.numel)                        # the largest is lent first
            del idle[:-MOST_IDLE]


def _place(device: torch.device) -> tuple[str, int]:
    """The device and its current stream."""
    return str(device), torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


POOL = ScratchPool()


def may_lend() -> bool:
    """Whether a weight may stand in lent memory: not where autograd, a compiled graph or a CUDA graph would keep it."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())


@contextlib.contextmanager
def decoded(weight: CodedWeight, dtype: torch.dtype, through: torch.dtype | None = None, channels_last: bool = False,
            pool: ScratchPool = POOL) -> Iterator[torch.Tensor]:
    """A weight in its logical shape and dtype for as long as the block lasts, on its blob's device.

    through: rounded to this dtype first. channels_last: of a convolution, the order codes have; costs no copy.
    Lent memory: nothing that outlives the block may keep the tensor or a view of it.
    """
    first = through or dtype
    with contextlib.ExitStack() as stack:
        def take(kind: torch.dtype) -> torch.Tensor:
            if may_lend():
                return stack.enter_context(pool.lend(weight.numel, kind, weight.device))
            return torch.empty(weight.numel, dtype=kind, device=weight.device)       # [numel]

        matrix = weight.decode_matrix(first, out=take(first).view(weight.shape[0], -1))      # [out, taps * in]
        view = shaped(matrix, weight.shape)                                          # [*logical shape]
        in_order = channels_last or view.is_contiguous()                             # linear layers and 1x1, too
        if in_order and first == dtype:
            yield view
        else:
            memory = take(dtype)
            target = shaped(memory.view(matrix.shape), weight.shape) if in_order else memory.view(weight.shape)
            yield target.copy_(view)
