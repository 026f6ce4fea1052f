"""Owns the second order of coded columns, (channel, tap): a kernel's taps side by side, to be coded as one group."""
from __future__ import annotations

from dataclasses import replace

import torch

from ..gram import Gram
from .feedback import Feedback, make_feedback


def by_channel(channels: int, taps: int) -> torch.Tensor:
    """Where the columns of (channel, tap) stand in (tap, channel): int64 [channels * taps]"""
    return torch.arange(taps * channels).view(taps, channels).t().flatten()


def feedback_in_order(gram: Gram, order: torch.Tensor | None) -> Feedback:
    """A gram of columns in the order (tap, channel), factored for coding in the order of by_channel (None: as it is).

    Grams of single taps are factored as they are: in the new order their columns come in the same sequence, so the
    factors are only put in place, as one block [1, taps * channels, taps * channels].
    """
    if order is None:
        return make_feedback(gram)
    if gram.blocks.shape[0] == 1:
        held_out = None if gram.held_out is None else _turned(gram.held_out, order)
        return make_feedback(replace(gram, blocks=_turned(gram.blocks, order), held_out=held_out))
    alone = make_feedback(gram)
    whole, forward = (_turned(torch.block_diag(*blocks)[None], order) for blocks in (alone.gram, alone.forward))
    return Feedback(whole, forward, alone.pivots.reshape(1, -1)[:, order], alone.damping)


def _turned(blocks: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return blocks[:, order][:, :, order]
