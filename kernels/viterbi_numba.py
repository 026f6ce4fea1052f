"""Owns the CPU trellis encoder in native code: threads over sequences, numba kernels over the steps of one sequence.

Same codes as kernels/viterbi_reference.py. numba compiles one kernel per (window, step bits, vector) on first use,
0.4 to 1.3 s each on a 2.5 GHz Xeon; not cached on disk, since the pack's folder may not be writable.
"""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache

import numpy as np
import torch

from .viterbi_reference import RENORMALIZE, prepare


def encode(targets: torch.Tensor, table: torch.Tensor, step_bits: int, kinds: torch.Tensor,
           states: torch.Tensor) -> torch.Tensor:
    """Codes uint8 [sequences, steps]; targets int32 [sequences, steps, vector] clipped and zero where masked,
    kinds: uint8 [steps], bit v set where weight v of a step counts, states: int32 [sequences], where each starts.
    Threads: torch.get_num_threads().

    Python threads, not numba's: its default pool ends the process when two host threads use it at once.
    """
    x, entries = targets.numpy(), table.numpy()
    kernel, arguments = kernel_for(entries, step_bits)
    codes = np.empty(x.shape[:2], np.uint8)                                       # [sequences, steps]

    def work(first: int, last: int) -> None:
        kernel(x[first:last], kinds.numpy(), states.numpy()[first:last], *arguments,
               *buffers(entries.shape[0], step_bits, x.shape[1]), codes[first:last])

    threads = max(1, min(torch.get_num_threads(), len(x)))
    bounds = [len(x) * i // threads for i in range(threads + 1)]
    if threads == 1:
        work(*bounds)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, bounds[:-1], bounds[1:]))
    return torch.from_numpy(codes)


def kernel_for(table: np.ndarray, step_bits: int):
    """-> (kernel, its constant arguments): kernel(targets, kinds, states, *arguments, *buffers(..), codes)."""
    return _kernel_for(table.tobytes(), table.dtype.str, table.shape, step_bits)


def buffers(size: int, step_bits: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a kernel works in: path costs, minima, back pointers."""
    groups = size >> step_bits
    return (_aligned(np.zeros(size, np.int32)), _aligned(np.zeros(groups, np.int32)),
            _aligned(np.zeros((steps, groups), np.uint8)))


@lru_cache(maxsize=16)
def _kernel_for(entries: bytes, dtype: str, shape: tuple[int, int], step_bits: int):
    """kernel_for, places of states in the kernel's own order. Kept: making them takes as long as 100 steps."""
    table = np.frombuffer(entries, dtype).reshape(shape)
    size, vector = shape
    window = size.bit_length() - 1
    base, start = prepare(table, step_bits)
    if table.dtype != np.int8 or not _is_wide(window, step_bits):
        values = _aligned(table.T.astype(np.int16))                               # [vector, 2**window]
        return _narrow(window, step_bits, vector), (_aligned(base), values, start)
    order = np.arange(size).reshape(-1, 1 << step_bits).T.ravel()                 # place -> state
    second = table[:, 1:] if vector == 2 else table.astype(np.int16) ** 2
    pairs = _aligned(np.hstack([table[:, :1], second]).astype(np.int16)[order])   # [2**window, 2]
    energies = _aligned((base - base[0])[:, order])                               # [2**vector, 2**window]
    return _wide(window, step_bits, vector), (energies, pairs.reshape(-1), start)


def _is_wide(window: int, step_bits: int) -> bool:
    """Whether the in-place kernel applies: whole vectors, and factors of 16 bits. It is 1.5 to 2 times faster."""
    from .viterbi_llvm import lanes

    return step_bits <= 4 and window - 2 * step_bits >= 0 and 1 << (window - 2 * step_bits) >= lanes()


def _aligned(array: np.ndarray) -> np.ndarray:
    """Copy on a 64-byte boundary: vectors of 64 bytes across two cache lines cost 40 % here."""
    raw = np.empty(array.nbytes + 64, np.uint8)
    first = -raw.ctypes.data % 64
    out = raw[first:first + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


@cache
def _helpers(step_bits: int):
    """Loops that LLVM vectorizes by itself."""
    from numba import njit

    low = (1 << step_bits) - 1

    @njit(nogil=True)
    def renormalize(costs):
        least = costs[0]
        for s in range(costs.size):
            least = min(least, costs[s])
        least -= least & low
        for s in range(costs.size):
            costs[s] -= least

    return renormalize


@cache
def _narrow(window: int, step_bits: int, vector: int):
    from numba import njit

    from .viterbi_llvm import narrow_step

    choose, extend, width, span = narrow_step(window, step_bits, vector)
    renormalize = _helpers(step_bits)
    size, groups, last = 1 << window, 1 << (window - step_bits), (1 << step_bits) - 1

    @njit(nogil=True)
    def kernel(targets, kinds, states, base, entries, start, costs, best, back, codes):
        steps = targets.shape[1]
        for q in range(targets.shape[0]):
            for s in range(size):
                costs[s] = start | base[0, s]
            costs[states[q]] = base[0, states[q]]
            for t in range(steps):
                x0 = targets[q, t, 0] << step_bits
                x1 = targets[q, t, vector - 1] << step_bits
                for block in range(groups // width):
                    choose(costs, best, back[t], block * width)
                for block in range(size // span):
                    extend(best, costs, base[kinds[t]], entries, x0, x1, block * span)
                if t % RENORMALIZE == RENORMALIZE - 1:
                    renormalize(costs)
            state = 0
            for s in range(size):
                if costs[s] >> step_bits < costs[state] >> step_bits:
                    state = s
            for t in range(steps - 1, -1, -1):
                codes[q, t] = state & last
                state >>= step_bits
                state += back[t, state] * groups

    return kernel


@cache
def _wide(window: int, step_bits: int, vector: int):
    from numba import int32, njit

    from .viterbi_llvm import wide_step

    choose, extend, lanes = wide_step(window, step_bits, vector)
    renormalize = _helpers(step_bits)
    size, groups, last = 1 << window, 1 << (window - step_bits), (1 << step_bits) - 1
    run = groups >> step_bits

    @njit(nogil=True)
    def factors(x, kind):
        """The two 16-bit factors of a step's pairs: (-x0, -x1), or (-x, 4) for (entry, its square)."""
        second = -x[1] if vector == 2 else 4 * kind
        return int32(((second << step_bits) << 16) | ((-x[0] << step_bits) & 0xFFFF))

    @njit(nogil=True)
    def kernel(targets, kinds, states, energies, pairs, start, costs, best, back, codes):
        steps = targets.shape[1]
        for q in range(targets.shape[0]):
            for s in range(size):
                costs[(s & last) * groups + (s >> step_bits)] = start | (s >> (window - step_bits))
            first = states[q]
            costs[(first & last) * groups + (first >> step_bits)] = first >> (window - step_bits)
            for t in range(steps):
                for block in range(run // lanes):
                    choose(costs, best, back[t], block * lanes)
                both = factors(targets[q, t], kinds[t])
                for block in range(groups // lanes):
                    extend(costs, best, energies[kinds[t]], pairs, both, block * lanes)
                if t % RENORMALIZE == RENORMALIZE - 1:
                    renormalize(costs)
            state, least = 0, costs[0] >> step_bits
            for s in range(size):
                cost = costs[(s & last) * groups + (s >> step_bits)] >> step_bits
                if cost < least:
                    state, least = s, cost
            for t in range(steps - 1, -1, -1):
                codes[q, t] = state & last
                state >>= step_bits
                state += back[t, (state & last) * run + (state >> step_bits)] * groups

    return kernel
