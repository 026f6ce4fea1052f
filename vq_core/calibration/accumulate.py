"""Sums of x xᵀ over a group's inputs: which input vectors of a call are taken, and how they are added up."""
from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..trajectory import EDGES
from .groups import SETS, Group

INTERVALS = len(EDGES) - 1


def interval_of(level: float) -> int:
    """Index of the timestep interval (trajectory.EDGES); 1000 belongs to the last."""
    return min(INTERVALS - 1, max(0, sum(level >= edge for edge in EDGES[1:])))


def chosen_rows(total: int, most: int, seed: tuple[int, ...]) -> torch.Tensor:
    """At most `most` of 0..total-1, int64, ascending: one at random from each of as many equal stretches."""
    if total <= most:
        return torch.arange(total)
    jitter = np.random.default_rng(seed).random(most)
    return torch.from_numpy(((np.arange(most) + jitter) * (total / most)).astype(np.int64).clip(0, total - 1))


def input_rows(module: nn.Module, x: torch.Tensor, most: int, seed: tuple[int, ...]) -> torch.Tensor:
    """The input vectors of one call, or `most` of them -> float32 [rows, taps, channels].

    x: [..., channels] of a linear layer, [n, channels, h, w] of a convolution (im2col, in the coded matrix' order).
    """
    if isinstance(module, nn.Conv2d):
        return _patches(module, x, most, seed)
    flat = x.reshape(-1, x.shape[-1])
    return flat[chosen_rows(flat.shape[0], most, seed).to(x.device)].float()[:, None]


def _patches(module: nn.Conv2d, x: torch.Tensor, most: int, seed: tuple[int, ...]) -> torch.Tensor:
    (kh, kw), (sh, sw), (dh, dw), (ph, pw) = module.kernel_size, module.stride, module.dilation, module.padding
    padded = F.pad(x, (pw, pw, ph, ph)).permute(0, 2, 3, 1).contiguous()            # [n, h, w, channels]
    height = (padded.shape[1] - dh * (kh - 1) - 1) // sh + 1
    width = (padded.shape[2] - dw * (kw - 1) - 1) // sw + 1
    rows = chosen_rows(x.shape[0] * height * width, most, seed).to(x.device)
    image, top, left = rows // (height * width), rows // width % height * sh, rows % width * sw
    taps = [padded[image, top + i * dh, left + j * dw] for i in range(kh) for j in range(kw)]
    return torch.stack(taps, 1).float()                                             # [rows, taps, channels]


class Sums:
    """What one group has seen: sums [sets, blocks, size, size], numbers of vectors, squares by timestep interval."""

    NAMES = ("totals", "counts", "left_out", "interval_counts", "interval_squares")

    def __init__(self, group: Group, device: torch.device | str = "cpu"):
        self.group = group
        self.totals = torch.zeros(SETS, group.blocks, group.size, group.size, device=device)
        self.counts = np.zeros(SETS, np.int64)
        self.left_out = 0                                  # calls whose input was NaN or infinite
        self.interval_counts = np.zeros(INTERVALS, np.int64)
        self.interval_squares = np.zeros(INTERVALS)        # of vectors' mean squared element

    def add(self, rows: torch.Tensor, held_out: bool, level: float) -> None:
        """Add input vectors [rows, taps, channels] of one call."""
        power = float(rows.square().sum(dtype=torch.float64)) / (rows.shape[1] * rows.shape[2])
        if not np.isfinite(power):
            self.left_out += 1
            return
        blocks = rows.reshape(rows.shape[0], self.group.blocks, self.group.size).transpose(0, 1)
        self.totals[int(held_out)].baddbmm_(blocks.transpose(1, 2), blocks)
        self.counts[int(held_out)] += rows.shape[0]
        if not self.group.text:
            self.interval_counts[interval_of(level)] += rows.shape[0]
            self.interval_squares[interval_of(level)] += power

    def mean(self, held_out: bool) -> torch.Tensor:
        """float32 [blocks, size, size] on the CPU; zeros where nothing was seen."""
        return (self.totals[int(held_out)] / max(1, int(self.counts[int(held_out)]))).cpu()

    def note(self) -> dict:
        """What the file says about this gram besides its numbers."""
        squares = self.interval_squares / np.maximum(1, self.interval_counts)
        trace = float(self.mean(False).diagonal(dim1=1, dim2=2).double().sum())
        return {"trace": trace, "blocks": self.group.blocks, "size": self.group.size, "text": self.group.text,
                "count": int(self.counts[0]), "held_out_count": int(self.counts[1]), "left_out": self.left_out,
                "interval_counts": self.interval_counts.tolist(), "interval_squares": squares.tolist()}

    def state(self) -> dict[str, np.ndarray]:
        """Everything, for a snapshot."""
        return {name: self.totals.cpu().numpy() if name == "totals" else np.asarray(getattr(self, name))
                for name in self.NAMES}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take a snapshot's state over."""
        self.totals.copy_(torch.from_numpy(state["totals"]))
        self.counts, self.left_out = state["counts"].copy(), int(state["left_out"])
        self.interval_counts = state["interval_counts"].copy()
        self.interval_squares = state["interval_squares"].copy()
