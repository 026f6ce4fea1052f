"""Error feedback: columns are coded one after the other, each corrects what the earlier ones lost (GPTQ, LDLQ).

With the gram H = (I + A) D (I + A)ᵀ, A strictly upper triangular, column j is coded at w_j + sum over k < j of
e_k A_kj, where e_k = w_k - coded_k. If coding leaves errors z_j against these targets, the layer's output error
tr(E H Eᵀ) is sum D_jj |z_j|² (QuIP, arXiv 2307.13304, theorem 1; the same codes as GPTQ, arXiv 2210.17323).
"""
from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from ..errors import PlanError
from ..gram import Gram

# Shares of the mean diagonal added to it. 640 inputs wide, the best for 64, 160, 320, 640 and 4096 samples is 1, 1, .3,
# .1 and .03; with 64 samples 0.01 is worse than no feedback. The last stands for no feedback.
DAMPINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 1e6)
LAZY = 128                                 # columns whose corrections are added to the later ones at once


@dataclass(frozen=True)
class Feedback:
    """What a gram says about coding in this order of columns. All float32, blocks as in Gram."""

    gram: torch.Tensor                     # [n, size, size], of all inputs, damped
    forward: torch.Tensor                  # [n, size, size], A: strictly upper triangular
    pivots: torch.Tensor                   # [n, size], D
    damping: float

    def to(self, device: torch.device) -> Feedback:
        """The same on another device."""
        return Feedback(self.gram.to(device), self.forward.to(device), self.pivots.to(device), self.damping)


def make_feedback(gram: Gram, transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
                  damping: float | None = None) -> Feedback:
    """Factor a gram; damping None: the one of DAMPINGS with the least error on the held-out inputs.

    transform: applied to each block's rows [size, size], then to its columns (a rotation of the inputs).
    """
    def turned(blocks: torch.Tensor) -> torch.Tensor:
        if transform is None:
            return blocks.double()
        once = torch.stack([transform(b) for b in blocks.double()])
        return torch.stack([transform(b) for b in once.transpose(1, 2).contiguous()])

    with one_thread():
        if damping is None:
            damping = choose_damping(gram, turned)
        damped = add_damping(turned(gram.all_inputs()), damping)
        forward, pivots = factor(damped)
    return Feedback(damped.float(), forward.float(), pivots.float(), damping)


def choose_damping(gram: Gram, turned: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.double) -> float:
    """The damping whose corrections, learned on the one set of inputs, leave least error on the held-out ones.

    turned: blocks -> float64, in the rotation that is coded in. Goes downhill from rule_of_damping, in float32.
    """
    place = DAMPINGS.index(rule_of_damping(gram))
    if gram.held_out is None or not gram.held_out_count:
        return DAMPINGS[place]
    blocks = turned(gram.blocks).float()
    root = root_of(turned(gram.held_out)).float()                                   # [n, size, size]
    known: dict[int, float] = {}

    def error(place: int) -> float:
        if place not in known:
            forward, _ = factor(add_damping(blocks, DAMPINGS[place]))
            known[place] = held_out_error(forward, root)
        return known[place]

    while True:
        near = range(max(0, place - 1), min(len(DAMPINGS), place + 2))
        best = min(near, key=lambda i: (error(i), i))
        if best == place:
            return DAMPINGS[place]
        place = best


def rule_of_damping(gram: Gram) -> float:
    """Without held-out inputs: by their number over the columns, see DAMPINGS."""
    samples = gram.count / gram.blocks.shape[1]
    return next((damping for least, damping in ((4, 0.03), (1, 0.1), (0.5, 0.3)) if samples >= least), 1.0)


def add_damping(blocks: torch.Tensor, damping: float) -> torch.Tensor:
    """Add a share of each block's mean diagonal to its diagonal; a block of zeros becomes the identity."""
    diagonal = blocks.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1)                                                         # [n]
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    return blocks + torch.diag_embed((damping * mean)[:, None].expand_as(diagonal))


def factor(damped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive definite [n, s, s] -> A [n, s, s] strictly upper and D [n, s], (I + A) D (I + A)ᵀ = damped."""
    lower = torch.linalg.cholesky(damped.flip(1, 2))
    upper = lower.flip(1, 2)                                                        # upper upperᵀ = damped
    roots = upper.diagonal(dim1=1, dim2=2)                                          # [n, s]
    forward = upper / roots[:, None]
    return forward - torch.diag_embed(forward.diagonal(dim1=1, dim2=2)), roots.square()


def root_of(blocks: torch.Tensor) -> torch.Tensor:
    """Lower triangular root of grams that may be of low rank and rounded to 16 bits: float64 [n, s, s]."""
    for damping in (1e-6, 1e-4, 1e-3, 1e-2, 1e-1):
        root, failed = torch.linalg.cholesky_ex(add_damping(blocks, damping))
        if not failed.any():
            return root
    raise PlanError("a gram is not positive semidefinite: the calibration is damaged, calibrate again")


def expected_error(forward: torch.Tensor, held_out: torch.Tensor) -> torch.Tensor:
    """Output error on held_out when every column is coded with an error of variance 1: tr(T G Tᵀ), T = (I + A)⁻¹."""
    inverse = torch.linalg.inv(forward + torch.eye(forward.shape[1], dtype=forward.dtype))
    return ((inverse @ held_out) * inverse).sum()


def held_out_error(forward: torch.Tensor, root: torch.Tensor) -> float:
    """expected_error for held_out = root rootᵀ, at a third of the time: |T root|²."""
    return float(torch.linalg.solve_triangular(forward, root, upper=True, unitriangular=True).square().sum())


def code_columns(targets: torch.Tensor, feedback: Feedback, code) -> torch.Tensor:
    """Code float32 [rows, cols] column by column -> decoded, the same shape.

    code: a function as code_one_by_one takes it, or an object with a method block(first, here, targets, forward) that
    does what code_one_by_one does.
    """
    n, size = feedback.pivots.shape
    decoded = torch.empty_like(targets)
    code_block = code.block if hasattr(code, "block") else partial(code_one_by_one, code)
    for block in range(n):
        forward, first = feedback.forward[block], block * size
        wanted = targets[:, first:first + size].clone()                             # corrected as we go
        for start in range(0, size, LAZY):
            stop = min(size, start + LAZY)
            mine = slice(first + start, first + stop)
            here, share = _with_next(targets, wanted, forward, first, start, stop)
            own = targets[:, mine].t().contiguous()                                 # [columns, rows]
            decoded[:, mine] = code_block(first + start, here, own, share).t()
            wanted[:, stop:] += (targets[:, mine] - decoded[:, mine]) @ forward[start:stop, stop:]
    return decoded


def code_one_by_one(code: Callable[..., torch.Tensor], first: int, here: torch.Tensor, targets: torch.Tensor,
                    forward: torch.Tensor) -> torch.Tensor:
    """Columns first, first + 1 .. of targets [n, rows] -> decoded [n, rows].

    code(j, column [rows], following [rows] or None) codes one corrected column -> what it decodes to [rows];
    `following` is the next column as far as it is corrected yet. here, forward: as _with_next gives them.
    """
    decoded = torch.empty_like(targets)
    for i in range(len(targets)):
        decoded[i] = code(first + i, here[i], here[i + 1] if i + 1 < len(here) else None)
        here[i + 1:] += forward[i, i + 1:, None] * (targets[i] - decoded[i])
    return decoded


def _with_next(targets, wanted, forward, first: int, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns start..stop of a block as corrected so far, and what each one's error adds to the others.

    [n + 1, rows] and [n, n + 1]: the last is the column that comes after them; it is left out where there is none.
    """
    if stop < wanted.shape[1]:
        return wanted[:, start:stop + 1].t().contiguous(), forward[start:stop, start:stop + 1].contiguous()
    here, share = wanted[:, start:stop], forward[start:stop, start:stop]
    if first + stop < targets.shape[1]:                                             # the next block's, not corrected
        here = torch.cat([here, targets[:, first + stop, None]], 1)
        share = torch.cat([share, share.new_zeros(len(share), 1)], 1)
    return here.t().contiguous(), share.contiguous()


@contextmanager
def one_thread():
    """torch rounds sums differently with another number of threads; codes must not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
