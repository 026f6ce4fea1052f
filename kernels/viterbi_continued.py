"""Owns coding one sequence piece by piece, each piece going on from where the last one ended (error feedback needs it).

The plain way, on any backend and device; viterbi_columns.py does the same for many columns in one call.
"""
from __future__ import annotations

import torch

from . import viterbi


class Continued:
    """Codes pieces of `steps` steps of one sequence after the other.

    table: int8 [2**window, vector]; mask: bool [steps, vector], False = costs nothing; ahead: steps of the next piece
    that are coded along and thrown away, so that a piece ends in a state that suits the next.
    """

    def __init__(self, table: torch.Tensor, step_bits: int, mask: torch.Tensor, ahead: int, device: torch.device,
                 backend: str | None = None):
        self._table, self._step_bits, self._ahead = table, step_bits, min(ahead, len(mask))
        self._mask, self._device, self._backend = mask.cpu(), device, viterbi.choose(device, backend)
        self._state = 0

    def restart(self) -> None:
        """The next piece begins a sequence."""
        self._state = 0

    def code(self, piece: torch.Tensor, following: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """piece: float32 [steps * vector] in table steps; following: the next piece as far as it is known, or None.

        -> codes uint8 [steps], table entries int8 [steps * vector]
        """
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
