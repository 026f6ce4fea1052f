"""Owns coding one sequence piece by piece, each piece going on from where the last one ended (error feedback needs it).

The codes are those of viterbi.encode with `states`; with numba, what a call costs besides its steps is kept small.
"""
from __future__ import annotations

import numpy as np
import torch

from . import viterbi
from .viterbi_reference import FRACTION, TARGET_LIMIT


class Continued:
    """Codes pieces of `steps` steps of one sequence after the other.

    table: int8 [2**window, vector]; mask: bool [steps, vector], False = costs nothing; ahead: steps of the next piece
    that are coded along and thrown away, so that a piece ends in a state that suits the next.
    """

    def __init__(self, table: torch.Tensor, step_bits: int, mask: torch.Tensor, ahead: int, device: torch.device,
                 backend: str | None = None):
        self._table, self._step_bits, self._ahead = table, step_bits, min(ahead, len(mask))
        self._mask, self._device, self._backend = mask.cpu(), device, viterbi.choose(device, backend)
        self._native = _Native(table, step_bits, self._mask, self._ahead) if self._backend == "numba" else None
        self._state = 0

    def restart(self) -> None:
        """The next piece begins a sequence."""
        self._state = 0

    def code(self, piece: torch.Tensor, following: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """piece: float32 [steps * vector] in table steps; following: the next piece as far as it is known, or None.

        -> codes uint8 [steps], table entries int8 [steps * vector]
        """
        if self._native is not None:
            codes, values, self._state = self._native.code(piece, following, self._state)
            return codes, values
        targets, mask = viterbi.fixed_point(piece).view(self._mask.shape), self._mask
        if following is not None:
            ahead = viterbi.fixed_point(following).view(mask.shape)[:self._ahead]
            targets, mask = torch.cat([targets, ahead]), torch.cat([mask, mask[:self._ahead]])
        start = torch.tensor([self._state], dtype=torch.int32)
        codes = viterbi.encode(targets[None], self._table, self._step_bits, mask, self._backend, self._device,
                               start)[:, :len(self._mask)]                       # [1, steps]
        states = viterbi.windows(codes, self._table.shape[0], self._step_bits, start)[0]
        self._state = int(states[-1])
        return codes[0], self._table.to(states.device)[states.long()].reshape(-1)


class _Native:
    """The same through numba's kernel and numpy, with buffers made once."""

    def __init__(self, table: torch.Tensor, step_bits: int, mask: torch.Tensor, ahead: int):
        from .viterbi_numba import buffers, kernel_for

        self._entries, self._step_bits, self._steps = table.cpu().numpy(), step_bits, len(mask)
        self._kernel, self._arguments = kernel_for(self._entries, step_bits)
        self._mask = np.concatenate([mask.numpy(), mask.numpy()[:ahead]])        # [steps + ahead, vector]
        self._kinds = (self._mask @ (1 << np.arange(mask.shape[1]))).astype(np.uint8)
        self._buffers = buffers(self._entries.shape[0], step_bits, len(self._mask))
        self._targets = np.zeros((1, *self._mask.shape), np.int32)
        self._codes = np.zeros((1, len(self._mask)), np.uint8)

    def code(self, piece: torch.Tensor, following: torch.Tensor | None, state: int):
        """As Continued.code, and the state after the piece."""
        steps, vector = self._steps, self._mask.shape[1]
        x = self._targets[0]
        x[:steps] = _fixed(piece.numpy()).reshape(steps, vector)
        count = steps
        if following is not None:
            count = len(x)
            x[steps:] = _fixed(following.numpy()[:(count - steps) * vector]).reshape(-1, vector)
        x *= self._mask
        self._kernel(self._targets[:, :count], self._kinds[:count], np.array([state], np.int32), *self._arguments,
                     *self._buffers, self._codes[:, :count])
        codes = self._codes[0, :steps]
        states = _windows(codes, self._entries.shape[0], self._step_bits, state)
        return torch.from_numpy(codes.copy()), torch.from_numpy(self._entries[states].reshape(-1)), int(states[-1])


def _fixed(piece: np.ndarray) -> np.ndarray:
    """viterbi.fixed_point in numpy"""
    return np.rint(piece * np.float32(FRACTION)).clip(-TARGET_LIMIT, TARGET_LIMIT)


def _windows(codes: np.ndarray, size: int, step_bits: int, state: int) -> np.ndarray:
    """viterbi.windows of one sequence in numpy, int64 [steps]"""
    before = -(-(size.bit_length() - 1) // step_bits)
    early = (state >> (step_bits * np.arange(before - 1, -1, -1))) & ((1 << step_bits) - 1)
    if before * step_bits > size.bit_length() - 1:                                # the oldest code is cut off
        early[0] = state >> (step_bits * (before - 1))
    joined = np.concatenate([early, codes.astype(np.int64)])                      # [before + steps]
    states = joined[before:].copy()
    for shift in range(1, before):
        states |= joined[before - shift:len(joined) - shift] << (shift * step_bits)
    return states & (size - 1)
