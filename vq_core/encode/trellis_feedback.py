"""Owns trellis coding with error feedback: column after column, each chain's sequence goes on from its last state."""
from __future__ import annotations

import torch

from ...kernels import viterbi
from ..progress import Progress
from .feedback import Feedback, code_columns

# Steps of the next column coded along with a column and thrown away, so that the state a column ends in suits the next
# (a chain is one sequence of codes). 1280 x 640, 2 bits: see docs/calibration.md.
LOOK_AHEAD = 32


class ColumnCoder:
    """Codes one column at a time, in order; keeps the step codes.

    code: a trellis code (trellis._Code); live: bool [out_features], False for rows of zeros; chain: columns a sequence.
    """

    def __init__(self, code, live: torch.Tensor, columns: int, chain: int, progress: Progress | None):
        self._code, self._chain, self._progress = code, chain, progress
        self._rows, self._steps = len(live), code.padded_steps(len(live))
        self._ahead = min(LOOK_AHEAD, self._steps)
        self._mask = torch.zeros(self._steps * code.vector, dtype=torch.bool)
        self._mask[:self._rows] = live.cpu()
        self._mask = self._mask.view(self._steps, code.vector)                       # [steps, vector]
        self._states: dict[int, torch.Tensor] = {}                                  # column -> state after it
        self.steps = torch.zeros(columns, self._steps, dtype=torch.uint8, device=live.device)

    def __call__(self, column: int, wanted: torch.Tensor, following: torch.Tensor | None) -> torch.Tensor:
        """Code `wanted` [out_features], in sigmas -> what it decodes to."""
        if self._progress is not None:
            self._progress.check()
        first = column % self._chain == 0
        state = torch.zeros(1, dtype=torch.int32) if first else self._states[column - 1]
        alone = following is None or (column + 1) % self._chain == 0
        targets, mask = self._fixed(wanted), self._mask
        if not alone:
            targets = torch.cat([targets, self._fixed(following)[:self._ahead]])
            mask = torch.cat([mask, mask[:self._ahead]])
        code = self._code
        chosen = viterbi.encode(targets[None], code.table, code.step_bits, mask, code.backend, states=state)
        chosen = chosen[:, :self._steps]                                             # [1, steps]
        windows = viterbi.windows(chosen, code.table.shape[0], code.step_bits, state)
        self._states[column] = windows[:, -1].cpu()
        self.steps[column] = chosen[0]
        values = code.table.to(windows.device)[windows[0].long()]                    # [steps, vector]
        return values.view(-1)[:self._rows].float() * code.step

    def _fixed(self, column: torch.Tensor) -> torch.Tensor:
        """[out_features] in sigmas -> int32 [steps, vector]"""
        x = torch.zeros(self._steps * self._code.vector, dtype=torch.int32, device=column.device)
        x[:self._rows] = viterbi.fixed_point(column / self._code.step)
        return x.view(self._steps, -1)


def code_with_feedback(targets: torch.Tensor, live: torch.Tensor, code, chain: int, feedback: Feedback,
                       progress: Progress | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Code float32 [columns, out_features] -> (step codes uint8 [padded steps, columns], decoded, like targets).

    Coding every column once more, given all others, gained 0.3 % at 2 to 4 bits for twice the time, so it is not done.
    """
    coder = ColumnCoder(code, live, len(targets), chain, progress)
    decoded = code_columns(targets.t().contiguous(), feedback, coder)                # [out_features, columns]
    return coder.steps.t(), decoded.t()
