"""Owns learned rounding for uniform codes: each weight goes up or down so that the layer's outputs change least.

AdaRound (Nagel et al., arXiv 2004.10568) with the constants of Q-Diffusion (Li et al., arXiv 2302.04304, section 3.2).
Their objective for one layer, the squared error of its outputs, is tr(D G Dᵀ): the gram is all it needs, no inputs are
kept. The roundings of several layers of a block at once: calibration/reconstruct.py.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch

from ..progress import Progress
from .alternate import times_gram

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1      # of the sigmoid, so that 0 and 1 are reached
BETA_FIRST, BETA_LAST, WARM_UP = 20.0, 2.0, 0.2
MOMENTS, EPSILON = (0.9, 0.999), 1e-8      # Adam's


# 256 x 256 toy (benchmarks/correlated.py), 4 bits: nearest .0100, GPTQ .0054; weight .02, .1, .3, 1, 3: .0080, .0061,
# .0054, .0052, .0052. 300 iterations .0057 instead of .0054 (weight .3), 2000 gain 1 %; rate .05 the same as .02.
@dataclass(frozen=True)
class Schedule:
    """How long to learn. Errors are in units of one step of the grid, grams of mean diagonal 1."""

    iterations: int = 600                  # Q-Diffusion: 20,000 of 8 to 32 inputs each; here each sees all inputs
    rate: float = 0.02                     # of Adam
    weight: float = 1.0                    # of the term that drives roundings to 0 or 1


def round_adaptively(wanted: torch.Tensor, steps: torch.Tensor, top: int, gram: torch.Tensor,
                     schedule: Schedule | None = None, progress: Progress | None = None) -> torch.Tensor:
    """Codes float32 [rows, cols] within 0..top, each the floor or the ceiling of `wanted`, clamped.

    wanted: float32 [rows, cols], weights over the grid's steps plus zero points. steps: float32 [rows, cols], or
    [rows, 1]; rows do not influence each other, so a row is divided by the root mean square of its own.
    gram: float32 [n, size, size].
    """
    schedule = schedule or Schedule()
    mean = float(gram.diagonal(dim1=1, dim2=2).mean()) or 1.0
    size = steps.square().mean(1, keepdim=True).sqrt()
    steps = torch.where(size > 0, steps / torch.where(size > 0, size, 1.0), 0.0)
    base = wanted.floor()
    learned = torch.logit((wanted - base - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW))
    adam = _Adam(learned, schedule.rate)
    for i in range(schedule.iterations):
        if progress is not None:
            progress.check()
        share, slope = _soft(learned)
        code = base + share
        lost = (code.clamp(0, top) - wanted) * steps
        gradient = times_gram(lost, gram).mul_(2 / mean).mul_(steps)
        gradient.mul_((code >= 0) & (code <= top))
        done = (i / schedule.iterations - WARM_UP) / (1 - WARM_UP)
        if done >= 0:
            gradient.add_(_push(share, BETA_FIRST + (BETA_LAST - BETA_FIRST) * done), alpha=schedule.weight)
        adam.step(learned, gradient.mul_(slope))
    return (base + (_soft(learned)[0] >= 0.5)).clamp_(0, top)


def _soft(learned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-> the share of a step that is added, 0 to 1, and its slope."""
    sigmoid = learned.sigmoid()
    stretched = sigmoid * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
    slope = sigmoid * (1 - sigmoid) * (STRETCH_HIGH - STRETCH_LOW)
    return stretched.clamp(0, 1), slope.mul_((stretched > 0) & (stretched < 1))


def _push(share: torch.Tensor, beta: float) -> torch.Tensor:
    """Slope of 1 - |2 h - 1|^beta: away from one half, for large beta only close to 0 and 1."""
    side = 2 * share - 1
    return -2 * beta * side.abs().pow(beta - 1) * side.sign()


class _Adam:
    """Adam (Kingma and Ba 2014, algorithm 1) on one tensor, in place."""

    def __init__(self, values: torch.Tensor, rate: float):
        self.rate, self.count = rate, 0
        self.first, self.second = torch.zeros_like(values), torch.zeros_like(values)

    def step(self, values: torch.Tensor, gradient: torch.Tensor) -> None:
        self.count += 1
        one, two = MOMENTS
        self.first.mul_(one).add_(gradient, alpha=1 - one)
        self.second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
        size = (self.second / (1 - two**self.count)).sqrt_().add_(EPSILON)
        values.addcdiv_(self.first, size, value=-self.rate / (1 - one**self.count))
