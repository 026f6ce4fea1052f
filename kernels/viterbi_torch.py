"""Owns the trellis encoder in plain torch: many sequences at once, on any device. For CPUs without numba and GPUs
without Triton; same codes as kernels/viterbi_reference.py.
"""
from __future__ import annotations

from typing import NamedTuple

import torch

from .viterbi_reference import RENORMALIZE, prepare

# Bytes of path costs worked on at once: two such buffers fit the second-level cache of a core (CPU).
CPU_COST_BYTES = 1 << 19
GPU_COST_BYTES = 1 << 28
BACK_BYTES = 1 << 26     # bytes of back pointers at once


def encode(targets: torch.Tensor, table: torch.Tensor, step_bits: int, kinds: torch.Tensor,
           states: torch.Tensor) -> torch.Tensor:
    """Codes uint8 [sequences, steps] on the targets' device; arguments as in viterbi_numba.encode."""
    sequences, steps, _ = targets.shape
    size = table.shape[0]
    cost_bytes = CPU_COST_BYTES if targets.device.type == "cpu" else GPU_COST_BYTES
    batch = max(1, min(sequences, cost_bytes // (4 * size), BACK_BYTES // (steps * (size >> step_bits))))
    pieces = zip(targets.split(batch), states.split(batch), strict=True)
    return torch.cat([_encode(some, table, step_bits, kinds.tolist(), first) for some, first in pieces])


def _encode(targets: torch.Tensor, table: torch.Tensor, step_bits: int, kinds: list[int],
            states: torch.Tensor) -> torch.Tensor:
    """One batch. Sequences run along the last dimension, so that every operation is over contiguous memory."""
    device, (sequences, steps, vector) = targets.device, targets.shape
    size, fan = table.shape[0], 1 << step_bits
    groups = size >> step_bits
    base, start = (torch.as_tensor(v, device=device) for v in prepare(table.cpu().numpy(), step_bits))
    base = base[:, :, None]                                                       # [2**vector, 2**window, 1]
    entries = table.to(torch.int32).t()[:, :, None].contiguous()                  # [vector, 2**window, 1]
    x = (-targets.permute(1, 2, 0) << step_bits).contiguous()                     # [steps, vector, sequences]
    costs = (base[0] | start.to(torch.int32)).repeat(1, sequences)                # [2**window, sequences]
    first = states.long()
    costs[first, torch.arange(sequences, device=device)] = base[0, first, 0]
    best = torch.empty_like(costs[:groups])
    back = torch.empty(steps, groups, sequences, dtype=torch.uint8, device=device)
    # Views made once: indexing in the loop took a fourth of the time.
    old, new = _views(costs, fan, groups), _views(torch.empty_like(costs), fan, groups)
    inputs, entries, base, best_rows = x.unbind(), entries.unbind(), base.unbind(), best[:, None]
    for t, (x_t, back_t) in enumerate(zip(inputs, back.unbind(), strict=True)):
        torch.amin(old.by_first, 0, out=best)
        back_t.copy_(best)                   # its low 8 bits; those above step_bits are cleared at the end
        best &= -fan
        x_v = x_t.unbind()
        torch.mul(entries[0], x_v[0], out=new.costs)  # mul and add: addcmul is three times slower on int32 (CPU)
        for v in range(1, vector):
            new.costs.add_(entries[v] * x_v[v])
        new.costs.add_(base[kinds[t]])
        new.by_last.add_(best_rows)
        old, new = new, old
        if t % RENORMALIZE == RENORMALIZE - 1:
            old.costs.sub_(old.costs.amin(0) & -fan)
    return _trace_back((old.costs >> step_bits).argmin(0), back.bitwise_and_(fan - 1), step_bits)


class _Views(NamedTuple):
    """Path costs of all states, and the same memory by a state's oldest and newest step."""

    costs: torch.Tensor        # [2**window, sequences]
    by_first: torch.Tensor     # [fan, groups, sequences]
    by_last: torch.Tensor      # [groups, fan, sequences]


def _views(costs: torch.Tensor, fan: int, groups: int) -> _Views:
    return _Views(costs, costs.view(fan, groups, -1), costs.view(groups, fan, -1))


def _trace_back(state: torch.Tensor, back: torch.Tensor, step_bits: int) -> torch.Tensor:
    """Final states int64 [sequences] and pointers uint8 [steps, groups, sequences] -> codes [sequences, steps]."""
    steps, groups, sequences = back.shape
    states = torch.empty(steps, sequences, dtype=torch.int64, device=back.device)
    states[-1] = state
    group, pointer = torch.empty_like(state)[None], back.new_empty(1, sequences)
    rows, pointers = states[:, None].unbind(), back.unbind()
    for t in range(steps - 1, 0, -1):
        torch.bitwise_right_shift(rows[t], step_bits, out=group)
        torch.gather(pointers[t], 0, group, out=pointer)
        torch.add(group, pointer, alpha=groups, out=rows[t - 1])
    return (states & ((1 << step_bits) - 1)).to(torch.uint8).t().contiguous()
