"""Owns the trellis encoder for GPUs with Triton: one program per sequence, path costs stay in registers.

Same codes as kernels/viterbi_reference.py; checked on the CPU through Triton's interpreter.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch_triton import Launch
from .viterbi_reference import RENORMALIZE, prepare

BACK_BYTES = 1 << 30     # bytes of back pointers at once


def encode(targets: torch.Tensor, table: torch.Tensor, step_bits: int, kinds: torch.Tensor,
           states: torch.Tensor) -> torch.Tensor:
    """Codes uint8 [sequences, steps] on the targets' device; arguments as in viterbi_numba.encode."""
    sequences, steps, _ = targets.shape
    size = table.shape[0]
    _, start = prepare(table.cpu().numpy(), step_bits)
    batch = max(1, min(sequences, BACK_BYTES // (steps * (size >> step_bits))))
    back = torch.empty(batch, steps, size >> step_bits, dtype=torch.uint8, device=targets.device)
    codes = torch.empty(sequences, steps, dtype=torch.uint8, device=targets.device)
    kinds = kinds.to(targets.device)
    for first in range(0, sequences, batch):
        some = targets[first:first + batch]
        launch(some, table, step_bits, kinds, states[first:], start, back, codes[first:]).run(targets.device)
    return codes


def launch(targets: torch.Tensor, table: torch.Tensor, step_bits: int, kinds: torch.Tensor, states: torch.Tensor,
           start: int, back: torch.Tensor, codes: torch.Tensor) -> Launch:
    """The call that codes as many sequences as targets has; back: uint8 [sequences, steps, size >> step_bits]."""
    sequences, steps, vector = targets.shape
    arguments = {"targets": targets, "table": table, "kinds": kinds, "states": states, "back": back, "codes": codes,
                 "steps": steps, "start": start}
    constants = {"SIZE": table.shape[0], "STEP_BITS": step_bits, "VECTOR": vector, "EVERY": RENORMALIZE}
    return Launch(_viterbi, (sequences,), arguments, constants, max(1, min(8, table.shape[0] // 512)))


@triton.jit
def _viterbi(targets, table, kinds, states, back, codes, steps, start,
             SIZE: tl.constexpr, STEP_BITS: tl.constexpr, VECTOR: tl.constexpr, EVERY: tl.constexpr):
    """One sequence: targets int32 [steps, VECTOR] -> codes uint8 [steps], by way of back uint8 [steps, GROUPS].

    The state of group g and code c has the number g * FAN + c; read as [FAN, GROUPS] the same order has the states
    that compete for a place in one column.
    """
    FAN: tl.constexpr = 1 << STEP_BITS
    GROUPS: tl.constexpr = SIZE // FAN
    sequence = tl.program_id(0).to(tl.int64)
    targets += sequence * steps * VECTOR
    back += sequence * steps * GROUPS
    codes += sequence * steps
    group = tl.arange(0, GROUPS)
    state = group[:, None] * FAN + tl.arange(0, FAN)[None, :]          # [GROUPS, FAN]
    own = state // GROUPS
    first = tl.load(table + state * VECTOR).to(tl.int32)
    second = tl.load(table + state * VECTOR + (VECTOR - 1)).to(tl.int32)
    costs = tl.where(state == tl.load(states + sequence), own, own + start)
    for t in range(steps):
        packed = tl.min(tl.reshape(costs, (FAN, GROUPS)), axis=0)      # [GROUPS]
        tl.store(back + group, (packed & (FAN - 1)).to(tl.uint8))
        back += GROUPS                                                  # by steps: t * GROUPS could leave 32 bits
        kind = tl.load(kinds + t).to(tl.int32)
        step = (4 * (kind & 1) * first - tl.load(targets + t * VECTOR)) * first
        if VECTOR == 2:
            step += (2 * (kind & 2) * second - tl.load(targets + t * VECTOR + 1)) * second
        costs = (packed & -FAN)[:, None] + own + (step << STEP_BITS)
        if t % EVERY == EVERY - 1:
            costs -= tl.min(tl.min(costs, axis=1), axis=0) & -FAN
    tl.debug_barrier()                                                  # back pointers of all threads are written
    plain = costs >> STEP_BITS
    least = tl.min(tl.min(plain, axis=1), axis=0)
    best = tl.min(tl.min(tl.where(plain == least, state, SIZE), axis=1), axis=0)
    for i in range(steps):
        tl.store(codes + (steps - 1 - i), (best & (FAN - 1)).to(tl.uint8))
        best = best >> STEP_BITS
        back -= GROUPS
        best += tl.load(back + best).to(tl.int32) * GROUPS
