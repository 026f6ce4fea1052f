"""One layer's scales around its product: y = s_out * (W (s_in * x)) + b. Knows neither files nor hosts."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

CHANNELS_LAST, CHANNELS_SECOND = -1, 1     # where a linear layer's channels are, and a convolution's


@dataclass(frozen=True, eq=False)
class LayerScales:
    """One layer's scales for the samples of a call. rows: which line each sample takes, None: all the only one."""

    out: torch.Tensor                      # [lines, out]
    into: torch.Tensor | None              # [lines, in]
    rows: torch.Tensor | None              # int64 [samples]

    def around(self, x: torch.Tensor, bias: torch.Tensor | None, channels: int,
               multiply: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]) -> torch.Tensor:
        """multiply(x, bias) with its weight scaled; channels: CHANNELS_LAST or CHANNELS_SECOND."""
        y = multiply(x if self.into is None else x * self._for(self.into, x, channels), None)
        scales = self._for(self.out, y, channels)
        if bias is None:
            return y * scales
        bias = bias if channels == CHANNELS_LAST else bias[:, None, None]
        return torch.addcmul(bias.to(y), y, scales)                    # one pass, the bias is not scaled

    def _for(self, lines: torch.Tensor, x: torch.Tensor, channels: int) -> torch.Tensor:
        """-> broadcastable to x, in its dtype on its device"""
        found = lines.to(x)
        if self.rows is not None:
            found = found[spread(self.rows, x.shape[0])]
        return aligned(found, x, channels)


def spread(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Rows [samples] for a tensor whose first dimension has count entries: as many a sample, one after the other."""
    if count == len(rows):
        return rows
    return rows.repeat_interleave(count // len(rows)) if count % len(rows) == 0 else rows[:1].expand(count)


def aligned(lines: torch.Tensor, x: torch.Tensor, channels: int) -> torch.Tensor:
    """[lines, channels] -> shaped to multiply x [lines or more, ..., channels] or [.., channels, h, w]"""
    if channels == CHANNELS_SECOND:
        return lines[..., None, None]
    return lines.view(len(lines), *[1] * (x.dim() - 2), -1) if x.dim() > 1 else lines[0]
