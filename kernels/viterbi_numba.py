"""Owns the CPU trellis encoder in native code (numba): one sequence per thread at a time, vectors of 16 states.

Same codes as kernels/viterbi_reference.py. numba compiles one kernel per (window, step bits, vector) on first use.
"""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch

from .viterbi_reference import RENORMALIZE, prepare

LANES = 16   # int32 states in one vector; 8 is 0 to 25 % slower on an AVX-512 machine, LLVM splits it where need be


def encode(targets: torch.Tensor, table: torch.Tensor, step_bits: int, kinds: torch.Tensor) -> torch.Tensor:
    """Codes uint8 [sequences, steps]; targets int32 [sequences, steps, vector] clipped and zero where masked,
    kinds: uint8 [steps], bit v set where weight v of a step counts. Threads: torch.get_num_threads()."""
    x = targets.numpy()
    entries = table.numpy()
    kernel = _kernel(entries.shape[0].bit_length() - 1, step_bits, entries.shape[1])
    base, start = prepare(entries, step_bits)
    values = np.ascontiguousarray(entries.T.astype(np.int16))                     # [vector, 2**window]
    codes = np.empty(x.shape[:2], np.uint8)                                       # [sequences, steps]

    def work(first: int, last: int) -> None:
        costs = _aligned((2, entries.shape[0]), np.int32)
        back = _aligned((x.shape[1], entries.shape[0] >> step_bits), np.uint8)
        kernel(x[first:last], kinds.numpy(), _aligned_copy(base), _aligned_copy(values), start, costs, back,
               codes[first:last])

    threads = max(1, min(torch.get_num_threads(), len(x)))
    bounds = [len(x) * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))
    return torch.from_numpy(codes)


def _aligned(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Uninitialized array on a 64-byte boundary: unaligned 64-byte vectors cost 40 % here."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first:first + size].view(dtype).reshape(shape)


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    out = _aligned(array.shape, array.dtype)
    out[...] = array
    return out


@cache
def _kernel(window: int, step_bits: int, vector: int):
    from numba import njit

    advance = _advance(window, step_bits, vector)
    size, low, last = 1 << window, 1 << (window - step_bits), (1 << step_bits) - 1
    width = min(LANES, low)

    @njit(nogil=True)
    def kernel(targets, kinds, base, values, start, costs, back, codes):
        steps = targets.shape[1]
        for q in range(targets.shape[0]):
            now, new = costs[0], costs[1]
            for s in range(size):
                now[s] = start | base[0, s]
            now[0] = 0
            for t in range(steps):
                x0 = targets[q, t, 0] << step_bits
                x1 = targets[q, t, vector - 1] << step_bits
                for block in range(low // width):
                    advance(now, new, base[kinds[t]], values, x0, x1, back[t], block * width)
                now, new = new, now
                if t % RENORMALIZE == RENORMALIZE - 1:
                    least = now[0]
                    for s in range(size):
                        least = min(least, now[s])
                    least -= least & last
                    for s in range(size):
                        now[s] -= least
            state = 0
            for s in range(size):
                if now[s] >> step_bits < now[state] >> step_bits:
                    state = s
            for t in range(steps - 1, -1, -1):
                codes[q, t] = state & last
                state >>= step_bits
                state += back[t, state] * low

    return kernel


def _advance(window: int, step_bits: int, vector: int):
    """A numba function that moves `width` neighboring groups of states one step on, written as LLVM vector code.

    numba's own vectorizer turns the same loops into scatters (5 times slower at 4 bits a step).
    """
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    fan, low = 1 << step_bits, 1 << (window - step_bits)
    width = min(LANES, low)             # predecessors groups at once
    lanes = min(LANES, width * fan)     # successors at once
    int16, int32, int64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)

    def splat(value, n):
        return ir.Constant(ir.VectorType(int32, n), [value] * n)

    @intrinsic
    def advance(context, now, new, base, values, x0, x1, back, first):
        def build(target, b, signature, args):
            def data(i):
                return target.make_array(signature.args[i])(target, b, value=args[i]).data

            def at(pointer, offset, kind, n):
                address = b.gep(b.bitcast(pointer, kind.as_pointer()), [offset])
                return b.bitcast(address, ir.VectorType(kind, n).as_pointer())

            def load(pointer, offset, kind, n):
                return b.load(at(pointer, offset, kind, n), align=kind.width // 8)

            def step(offset, by):
                return b.add(offset, ir.Constant(int64, by))

            def spread(scalar):
                one = b.insert_element(ir.Constant(ir.VectorType(int32, lanes), ir.Undefined), scalar,
                                       ir.Constant(int32, 0))
                return b.shuffle_vector(one, one, splat(0, lanes))

            costs, out, energies, entries = (data(i) for i in range(4))
            targets = [spread(args[4 + v]) for v in range(vector)]
            best = load(costs, args[7], int32, width)
            for y in range(1, fan):
                other = load(costs, step(args[7], y * low), int32, width)
                best = b.select(b.icmp_signed("<", best, other), best, other)
            pointers = b.trunc(b.and_(best, splat(fan - 1, width)), ir.VectorType(ir.IntType(8), width))
            b.store(pointers, at(data(6), args[7], ir.IntType(8), width), align=1)
            best = b.and_(best, splat(-fan, width))
            for r in range(width * fan // lanes):
                state = step(b.mul(args[7], ir.Constant(int64, fan)), r * lanes)
                parents = ir.Constant(ir.VectorType(int32, lanes), [(r * lanes + i) // fan for i in range(lanes)])
                cost = b.add(b.shuffle_vector(best, best, parents), load(energies, state, int32, lanes))
                for v in range(vector):
                    entry = b.sext(load(entries, step(state, v << window), int16, lanes), targets[v].type)
                    cost = b.sub(cost, b.mul(entry, targets[v]))
                b.store(cost, at(out, state, int32, lanes), align=4)
            return target.get_dummy_value()

        return types.void(now, new, base, values, types.int32, types.int32, back, types.int64), build

    return advance
