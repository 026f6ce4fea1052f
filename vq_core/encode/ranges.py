"""Owns what a later range of input channels can do for the errors of earlier ones of the same layer."""
from __future__ import annotations

import torch

from ..gram import Gram, output_error
from .feedback import DAMPINGS, add_damping, one_thread


def carried_over(lost: torch.Tensor, gram: Gram, start: int, stop: int, channels: int) -> torch.Tensor:
    """What to add to the weights of channels start..stop of `channels`, [rows, taps * (stop - start)].

    lost: float32 [rows, taps * start], the errors of the channels before them. They are best made up for by
    lost G12 G22⁻¹, where the gram G is parted like the channels; G22 is damped by the share that serves the held-out
    inputs best (without these: a tenth of the mean diagonal).
    """
    n, size, _ = gram.blocks.shape
    before, here = (torch.cat([torch.arange(*ends) + first for first in range(0, size, channels)])
                    for ends in ((0, start), (start, stop)))
    with one_thread():
        learned = gram.blocks.double()
        if gram.held_out is None or not gram.held_out_count:
            damping = 0.1
        else:
            damping = min(DAMPINGS, key=lambda share: _left(lost, _solve(learned, before, here, share),
                                                            gram.held_out, before, here))
        solved = _solve(gram.all_inputs(), before, here, damping)                   # [n, before, here]
        return _times(lost, solved)


def _solve(blocks: torch.Tensor, before: torch.Tensor, here: torch.Tensor, damping: float) -> torch.Tensor:
    """G12 (G22 + damping)⁻¹ of each block, float32 [n, before, here]"""
    own = add_damping(blocks[:, here][:, :, here], damping)
    return torch.linalg.solve(own, blocks[:, before][:, :, here], left=False).float()


def _times(lost: torch.Tensor, solved: torch.Tensor) -> torch.Tensor:
    n, first, second = solved.shape
    return (lost.view(-1, n, first).transpose(0, 1) @ solved).transpose(0, 1).reshape(len(lost), n * second)


def _left(lost, solved, held_out, before, here) -> float:
    """Output error on the held-out inputs where later channels make up for `lost` and lose nothing themselves."""
    n, size, _ = held_out.shape
    both = lost.new_zeros(len(lost), n, size)
    both[:, :, before] = lost.view(-1, n, len(before))
    both[:, :, here] = -_times(lost, solved).view(-1, n, len(here))
    return float(output_error(both.view(len(lost), -1), held_out).sum())
