"""Owns the choice of a trellis encoder: declared requirements, refusals in words, one call for every device.

Environment and devices are looked at only when encode() or report() is called.
"""
from __future__ import annotations

import importlib.util

import torch

from .viterbi_reference import FRACTION, MAX_STEP_BITS, MAX_VECTOR, MAX_WINDOW, TARGET_LIMIT, viterbi

BACKENDS = ("triton", "numba", "torch", "reference")


def encode(targets: torch.Tensor, table: torch.Tensor, step_bits: int, weights_mask: torch.Tensor | None = None,
           backend: str | None = None, device: torch.device | str | None = None,
           states: torch.Tensor | None = None) -> torch.Tensor:
    """Cheapest step codes, uint8 [sequences, steps] on the CPU or `device`; the same from every backend.

    targets: int32 [sequences, steps, vector], eighths of a table step (FRACTION), clipped to +-TARGET_LIMIT;
    table: int8 [2**window, vector]; weights_mask: bool [steps] or [steps, vector], False = costs nothing;
    states: integers [sequences], the window each sequence starts from (default 0).
    Raises ValueError on shapes and sizes out of range, and where the wished backend cannot run.
    """
    mask = _check(targets, table, step_bits, weights_mask)
    device = torch.device(device) if device is not None else targets.device
    backend = choose(device, backend)
    x = targets.to(torch.int32).clamp(-TARGET_LIMIT, TARGET_LIMIT) * mask.to(targets.device, torch.int32)
    bits = 1 << torch.arange(table.shape[1])
    kinds = (mask.cpu() * bits).sum(1).to(torch.uint8)                            # [steps]
    states = _starts(states, len(targets), table.shape[0])
    return _run(backend, x, table, step_bits, kinds, mask, states, device)


def fixed_point(targets: torch.Tensor) -> torch.Tensor:
    """Targets in table steps, float -> the int32 that encode() takes."""
    return (targets * FRACTION).round_().clamp_(-TARGET_LIMIT, TARGET_LIMIT).to(torch.int32)


def replay(codes: torch.Tensor, table: torch.Tensor, step_bits: int, starts: torch.Tensor | None = None
           ) -> torch.Tensor:
    """Table entries int8 [sequences, steps, vector] that step codes [sequences, steps] stand for."""
    return table.to(codes.device)[windows(codes, table.shape[0], step_bits, starts).long()]


def windows(codes: torch.Tensor, size: int, step_bits: int, starts: torch.Tensor | None = None) -> torch.Tensor:
    """The state after each step code [sequences, steps], int32; size: 2**window, starts: as in encode()."""
    states = codes.to(torch.int32)                                                # [sequences, steps]
    shift = 1
    while shift * step_bits < size.bit_length() - 1:
        states[:, shift:] |= codes[:, :-shift].to(torch.int32) << (shift * step_bits)
        shift += 1
    if starts is not None:
        for step in range(min(shift, states.shape[1])):
            states[:, step] |= starts.to(states) << ((step + 1) * step_bits)
    return states & (size - 1)


def choose(device: torch.device, backend: str | None = None) -> str:
    """The backend that will run on this device; ValueError says why a wished one cannot."""
    why = report(device)
    if backend is None:
        return next(name for name in BACKENDS if why[name] is None)
    if backend not in why:
        raise ValueError(f"unknown trellis encoder '{backend}': expected one of {', '.join(BACKENDS)}")
    if why[backend] is not None:
        raise ValueError(f"trellis encoder '{backend}' cannot run on {device}: {why[backend]}")
    return backend


def report(device: torch.device | str) -> dict[str, str | None]:
    """Backend -> None where it can run on this device, else the reason why not."""
    kind = torch.device(device).type
    missing = {name: None if importlib.util.find_spec(name) else f"{name} is not installed"
               for name in ("triton", "numba")}
    return {
        "triton": missing["triton"] or (None if kind == "cuda" else "it needs a CUDA device"),
        "numba": missing["numba"] or (None if kind == "cpu" else "it runs on the CPU only"),
        "torch": None,
        "reference": None if kind == "cpu" else "it runs on the CPU only",
    }


def _run(backend, x, table, step_bits, kinds, mask, states, device) -> torch.Tensor:
    if backend == "reference":
        rows = [torch.from_numpy(viterbi(row.numpy(), table.numpy(), step_bits, mask.numpy(), int(first)))
                for row, first in zip(x.cpu(), states, strict=True)]
        return torch.stack(rows).to(torch.uint8)
    if backend == "numba":
        from .viterbi_numba import encode as run

        return run(x.cpu().contiguous(), table.cpu().contiguous(), step_bits, kinds, states)
    if backend == "triton":
        from .viterbi_triton import encode as run
    else:
        from .viterbi_torch import encode as run
    return run(x.to(device).contiguous(), table.to(device).contiguous(), step_bits, kinds, states.to(device))


def _starts(states: torch.Tensor | None, sequences: int, size: int) -> torch.Tensor:
    """int32 [sequences] on the CPU"""
    if states is None:
        return torch.zeros(sequences, dtype=torch.int32)
    states = states.cpu().to(torch.int32)
    if states.shape != (sequences,) or bool(((states < 0) | (states >= size)).any()):
        raise ValueError(f"expected one start state from 0 to {size - 1} for each of {sequences} sequences, got "
                         f"{tuple(states.shape)} values")
    return states.contiguous()


def _check(targets, table, step_bits, mask) -> torch.Tensor:
    """-> mask bool [steps, vector]"""
    if targets.ndim != 3 or table.ndim != 2 or targets.shape[2] != table.shape[1] or targets.is_floating_point():
        raise ValueError(f"expected integer targets [sequences, steps, vector] and a table [2**window, vector], "
                         f"got {tuple(targets.shape)} {targets.dtype} and {tuple(table.shape)}")
    sequences, steps, vector = targets.shape
    window = table.shape[0].bit_length() - 1
    fits = table.shape[0] == 1 << window and window <= MAX_WINDOW and 1 <= vector <= MAX_VECTOR
    if table.dtype != torch.int8 or not fits:
        raise ValueError(f"expected an int8 table of 2**window (window <= {MAX_WINDOW}) entries of 1 or {MAX_VECTOR} "
                         f"weights, got {tuple(table.shape)} {table.dtype}")
    if not 1 <= step_bits <= min(MAX_STEP_BITS, window) or sequences < 1 or steps < 1:
        raise ValueError(f"expected 1 to {min(MAX_STEP_BITS, window)} bits a step and at least one step of one "
                         f"sequence, got {step_bits} bits, {sequences} sequences of {steps} steps")
    if mask is None:
        return torch.ones(steps, vector, dtype=torch.bool)
    if mask.shape not in ((steps,), (steps, vector)):
        raise ValueError(f"expected a mask [{steps}] or [{steps}, {vector}], got {tuple(mask.shape)}")
    return mask.bool().cpu().reshape(steps, -1).expand(steps, vector)
