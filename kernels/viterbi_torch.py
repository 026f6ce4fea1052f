"""Owns the trellis encoder in plain torch: many sequences at once, on any device. For CPUs without numba and GPUs
without Triton; same codes as kernels/viterbi_reference.py.
"""
from __future__ import annotations

import torch

from .viterbi_reference import RENORMALIZE, prepare

# Bytes of path costs worked on at once: two such buffers fit the second-level cache of a core (CPU).
CPU_COST_BYTES = 1 << 19
GPU_COST_BYTES = 1 << 28
BACK_BYTES = 1 << 26     # bytes of back pointers at once


def encode(targets: torch.Tensor, table: torch.Tensor, step_bits: int, kinds: torch.Tensor) -> torch.Tensor:
    """Codes uint8 [sequences, steps] on the targets' device; arguments as in viterbi_numba.encode."""
    sequences, steps, _ = targets.shape
    size = table.shape[0]
    cost_bytes = CPU_COST_BYTES if targets.device.type == "cpu" else GPU_COST_BYTES
    batch = max(1, min(sequences, cost_bytes // (4 * size), BACK_BYTES // (steps * (size >> step_bits))))
    return torch.cat([_encode(some, table, step_bits, kinds.tolist()) for some in targets.split(batch)])


def _encode(targets: torch.Tensor, table: torch.Tensor, step_bits: int, kinds: list[int]) -> torch.Tensor:
    """One batch. Sequences run along the last dimension, so that every operation is over contiguous memory."""
    device, (sequences, steps, vector) = targets.device, targets.shape
    size, fan = table.shape[0], 1 << step_bits
    groups = size >> step_bits
    base, start = (torch.as_tensor(v, device=device) for v in prepare(table.cpu().numpy(), step_bits))
    base = base[:, :, None]                                                       # [2**vector, 2**window, 1]
    entries = table.to(torch.int32).t()[:, :, None].contiguous()                  # [vector, 2**window, 1]
    x = (-targets.permute(1, 2, 0) << step_bits).contiguous()                     # [steps, vector, sequences]
    costs = (base[0] | start.to(torch.int32)).repeat(1, sequences)                # [2**window, sequences]
    costs[0] = 0
    new, best = torch.empty_like(costs), torch.empty_like(costs[:groups])
    back = torch.empty(steps, groups, sequences, dtype=torch.uint8, device=device)
    for t in range(steps):
        torch.amin(costs.view(fan, groups, sequences), 0, out=best)
        back[t] = best                       # its low 8 bits; those above step_bits are cleared at the end
        best &= -fan
        torch.mul(entries[0], x[t, 0], out=new)  # mul and add: addcmul is three times slower on int32 (CPU)
        for v in range(1, vector):
            new += entries[v] * x[t, v]
        new += base[kinds[t]]
        new.view(groups, fan, sequences).add_(best[:, None])
        costs, new = new, costs
        if t % RENORMALIZE == RENORMALIZE - 1:
            costs -= costs.amin(0) & -fan
    return _trace_back((costs >> step_bits).argmin(0), back.bitwise_and_(fan - 1), step_bits)


def _trace_back(state: torch.Tensor, back: torch.Tensor, step_bits: int) -> torch.Tensor:
    """Final states int64 [sequences] and pointers uint8 [steps, groups, sequences] -> codes [sequences, steps]."""
    steps, groups, sequences = back.shape
    states = torch.empty(steps, sequences, dtype=torch.int64, device=back.device)
    for t in range(steps - 1, -1, -1):
        states[t] = state
        state = state >> step_bits
        state = torch.add(state, back[t].gather(0, state[None])[0], alpha=groups)
    return (states & ((1 << step_bits) - 1)).to(torch.uint8).t().contiguous()
