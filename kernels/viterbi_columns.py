"""Owns trellis coding with error feedback in native code: many columns in one call, with the interpreter left out.

The same codes as feedback.code_one_by_one with Continued, which is its reference: 64 columns of 64 rows took a fourth
of the time, 1280 rows two thirds.
"""
from __future__ import annotations

from functools import cache

import numpy as np
import torch

from .viterbi_reference import FRACTION, TARGET_LIMIT


class Columns:
    """Codes blocks of columns of one matrix in order; chains of columns are one sequence each.

    table: int8 [2**window, vector]; step: of a table unit, in sigmas; mask: bool [steps, vector]; ahead: steps of the
    next column coded along; chain: columns in a sequence.
    """

    def __init__(self, table: torch.Tensor, step_bits: int, step: float, mask: torch.Tensor, ahead: int, chain: int):
        from .viterbi_numba import buffers, kernel_for

        self._entries, self._step, self._chain = table.cpu().numpy(), np.float32(step), chain
        kernel, self._arguments = kernel_for(self._entries, step_bits)
        self._mask = np.concatenate([mask.numpy(), mask.numpy()[:ahead]])            # [steps + ahead, vector]
        self._kinds = (self._mask @ (1 << np.arange(mask.shape[1]))).astype(np.uint8)
        self._buffers = buffers(self._entries.shape[0], step_bits, len(self._mask))
        self._targets, self._steps = np.zeros((1, *self._mask.shape), np.int32), len(mask)
        self._run, self._state = _compile(kernel, step_bits), np.zeros(1, np.int32)

    def code(self, first: int, here: torch.Tensor, targets: torch.Tensor, forward: torch.Tensor
             ) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns first, first + 1 .. of targets float32 [n, rows], corrected so far as `here` [n or n + 1, rows] says.

        forward: float32 [n, n or n + 1], what column i's error adds to column k; `here` is changed. -> step codes
        uint8 [n, steps], decoded float32 [n, rows].
        """
        codes = np.zeros((len(targets), self._steps), np.uint8)
        decoded = np.empty(targets.shape, np.float32)
        self._run(first, self._chain, here.numpy(), targets.numpy(), forward.numpy(), self._step, self._mask,
                  self._kinds, self._targets, self._entries, self._state, *self._arguments, *self._buffers, codes,
                  decoded)
        return torch.from_numpy(codes), torch.from_numpy(decoded)


@cache
def _compile(kernel, step_bits: int):
    from numba import float32, int32, njit

    @njit(nogil=True)
    def fill(x, first, column, step, mask):
        """Fixed-point targets of one column from x[0, first] on: viterbi.fixed_point."""
        vector = x.shape[2]
        for t in range(first, mask.shape[0]):
            for v in range(vector):
                row = (t - first) * vector + v
                value = float32(0)
                if mask[t, v] and row < column.size:
                    value = np.rint(column[row] / step * float32(FRACTION))
                    value = min(max(value, float32(-TARGET_LIMIT)), float32(TARGET_LIMIT))
                x[0, t, v] = int32(value)

    @njit(nogil=True)
    def run(first, chain, here, targets, forward, step, mask, kinds, x, entries, state, one, two, start, costs, best,
            back, codes, decoded):
        steps, vector, rows = codes.shape[1], x.shape[2], targets.shape[1]
        chosen = np.zeros((1, x.shape[1]), np.uint8)
        lost = np.empty(rows, np.float32)
        for i in range(targets.shape[0]):
            if (first + i) % chain == 0:
                state[0] = 0
            count = steps
            fill(x, 0, here[i], step, mask[:steps])
            if (first + i + 1) % chain and i + 1 < here.shape[0]:
                count = x.shape[1]
                fill(x, steps, here[i + 1], step, mask)
            kernel(x[:, :count], kinds[:count], state, one, two, start, costs, best, back, chosen[:, :count])
            window = state[0]
            for t in range(steps):
                codes[i, t] = chosen[0, t]
                window = ((window << step_bits) | chosen[0, t]) & (entries.shape[0] - 1)
                for v in range(vector):
                    if t * vector + v < rows:
                        decoded[i, t * vector + v] = float32(entries[window, v]) * step
            state[0] = window
            for r in range(rows):
                lost[r] = targets[i, r] - decoded[i, r]
            for k in range(i + 1, here.shape[0]):
                share = forward[i, k]
                for r in range(rows):
                    here[k, r] += share * lost[r]

    return run
