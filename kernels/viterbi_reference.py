"""Owns the truth about trellis encoding: integer cost, tie rules, and a plain numpy Viterbi for one sequence at a time.

Every backend works in the same int32 arithmetic and so returns the same codes (docs/format.md, section 4;
the code is the bitshift trellis of QTIP, arXiv 2406.11235, section 3.1).
"""
from __future__ import annotations

import numpy as np

FRACTION = 8           # a target is an int32 in eighths of a table step; finer gains < 0.03 % at 4 bits
TARGET_LIMIT = 2040    # targets are clipped to +-255 table steps, twice the largest entry: (TARGET_LIMIT << 4) < 2^15
RENORMALIZE = 16       # steps between subtractions of the smallest cost; see prepare()
MAX_STEP_BITS = 7
MAX_VECTOR = 2
MAX_WINDOW = 16


def prepare(table: np.ndarray, step_bits: int) -> tuple[np.ndarray, int]:
    """-> (base costs int32 [2**vector, 2**window], cost of a start state other than 0).

    A step at target x (vector weights) costs state s  sum_v (4 t[s, v]^2 - x[v] t[s, v]), which is 4 times the squared
    distance in table steps, less a constant. A packed cost is `cost << step_bits | y`: y are the state's own top
    bits, by which its successors find it as their predecessor, so that one minimum yields value and argument and a
    tie goes to the lowest y. Row k of the base costs holds (sum over the v with bit v of k set of 4 t^2) << B | y:
    a weight that is masked out drops its bit and has x = 0.

    No int32 overflow: |t| <= 128 and |x| <= TARGET_LIMIT bound one weight's cost to [-X, X + 2^17], X = 2040 * 128, so
    two states' costs at one step differ by at most S = 2 X and a step adds at most G = X + 4 * 128^2 in size. Any
    state is reached from any other in K = ceil(L / B) steps, so two path costs differ by less than D = K V S + 1, and
    start states other than 0 begin at D: more than any true path ever costs above another. Between
    subtractions packed costs stay below (2 D + 16 V G) 2^B <= 2.1402e9 < 2^31 at the worst case L = 16, B = 7, V = 2.
    (Training passes int16 tables of finer steps to numba's kernel; D then grows with their largest entry.)
    """
    size, vector = table.shape
    window = size.bit_length() - 1
    squares = 4 * table.astype(np.int64) ** 2                                     # [2**window, vector]
    own = np.arange(size) >> (window - step_bits)                                 # [2**window]
    chosen = np.array([[(k >> v) & 1 for v in range(vector)] for k in range(1 << vector)])
    base = ((chosen @ squares.T) << step_bits) | own                              # [2**vector, 2**window]
    hops, peak = -(-window // step_bits), max(128, int(np.abs(table.astype(np.int32)).max()))
    start = (hops * vector * 2 * TARGET_LIMIT * peak**2 // 128 + 1) << step_bits
    return base.astype(np.int32), start


def viterbi(targets: np.ndarray, table: np.ndarray, step_bits: int, mask: np.ndarray | None = None,
            state: int = 0) -> np.ndarray:
    """Codes int64 [steps] of the cheapest path from `state` to any state (lowest state among equals).

    targets: int [steps, vector] in eighths of a table step; table: int8 [2**window, vector];
    mask: bool [steps, vector], False = this weight costs nothing. Time steps * 2**window.
    """
    steps, vector = targets.shape
    size = table.shape[0]
    last, low = (1 << step_bits) - 1, size >> step_bits
    base, start = prepare(table, step_bits)
    entries = table.astype(np.int32)
    mask = np.ones((steps, vector), bool) if mask is None else mask
    x = np.where(mask, np.clip(targets, -TARGET_LIMIT, TARGET_LIMIT), 0).astype(np.int32)
    kinds = mask @ (1 << np.arange(vector))                                       # [steps]
    costs = np.full(size, start, np.int32) | (base[0])                            # [2**window]
    costs[state] = base[0, state]
    back = np.empty((steps, low), np.uint8)
    for t in range(steps):
        best = costs.reshape(1 << step_bits, low).min(0)                          # [2**(window - step_bits)]
        back[t] = best & last
        best &= ~np.int32(last)
        costs = np.repeat(best, 1 << step_bits) + base[kinds[t]] - ((entries @ x[t]) << step_bits)
        if t % RENORMALIZE == RENORMALIZE - 1:
            costs -= costs.min() & ~np.int32(last)
    return trace_back(int((costs >> step_bits).argmin()), back, step_bits)


def trace_back(state: int, back: np.ndarray, step_bits: int) -> np.ndarray:
    """Follow back pointers uint8 [steps, 2**(window - step_bits)] from a final state -> codes int64 [steps]."""
    steps, low = back.shape
    codes = np.empty(steps, np.int64)
    for t in range(steps - 1, -1, -1):
        codes[t] = state & ((1 << step_bits) - 1)
        state >>= step_bits
        state += int(back[t, state]) * low
    return codes


def replay(codes: np.ndarray, table: np.ndarray, step_bits: int, state: int = 0) -> np.ndarray:
    """Table entries int8 [steps, vector] that codes [steps] stand for, the window being `state` before them."""
    out = np.empty((len(codes), table.shape[1]), np.int8)
    for t, code in enumerate(codes):
        state = ((state << step_bits) | int(code)) & (table.shape[0] - 1)
        out[t] = table[state]
    return out
