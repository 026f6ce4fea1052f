"""What an error of each output row of each coded layer does to the predicted noise, from a few backward passes.

Let eps be the noise one step of one picture is drawn with, eps_empty + g (eps_prompt - eps_empty) for guidance g: an
error that both halves share is not amplified, one of their difference is, g times. W is a layer's weight with gram G of
its inputs, D a small error of W. To first order eps changes by sum_oc D_oc * d eps / d W_oc. Where the entries of D are
independent with mean zero and variance var_o in row o,

    E |change of eps|^2  =  sum_o var_o * sum_c |d eps / d W_oc|^2          (exact to first order)
                         =  sum_o s_o * E[D_o G D_o^T],      s_o = sum_c |d eps / d W_oc|^2 / trace G.

The second form also serves errors that a calibrated encoder has shaped, as an approximation (docs/calibration.md).
With random signs v, E_v (d<v, eps> / d W_oc)^2 = |d eps / d W_oc|^2: one backward pass an answer gives all layers.
The weight's own gradient is used, not that of the layer's output alone, because it sums over positions first: the mean
input makes the same error at every pixel, which attention adds up instead of averaging it out. The gradients of both
halves are added before they are squared.

Answers count alike: each one's s is divided by what an equal relative error of all layers would do to it, because
quality is a mean of decibels, and the last steps change 20 times more than the first ones (testbed).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from ..errors import UnsupportedError
from ..progress import Progress
from .calls import Calls
from .settings import GOLDEN, Settings


class Sensitivities:
    """Running means of squared weight gradients by output row. modules: layer key -> module."""

    def __init__(self, modules: Mapping[str, nn.Module]):
        self.modules = modules
        self.sums: dict[str, torch.Tensor] = {}            # key -> float64 [out]; of answers divided by their scale
        self.answers = self.left_out = 0
        self._logs = [0.0, 0.0]                            # sums of the logarithms of scales and of |eps|^2
        self._squares = {key: self.row_squares(module) for key, module in modules.items()}

    def add(self, halves: Sequence[tuple[float, Callable[[], torch.Tensor]]], generator: torch.Generator) -> None:
        """One answer: sum of factor * ask() over (factor, ask); ask() -> a half's answer, with a graph behind it."""
        largest = max(abs(factor) for factor, _ in halves)
        answer, signs = 0.0, None
        try:
            for module in self.modules.values():
                module.weight.requires_grad_(True)
            for factor, ask in halves[:-1]:                # gradients of all layers wait for the last half's
                answer, signs = self._ask(answer, factor, largest, ask, signs, generator)
            with self._taking() as found:
                factor, ask = halves[-1]
                answer, signs = self._ask(answer, factor, largest, ask, signs, generator)
        finally:
            for module in self.modules.values():
                module.weight.requires_grad_(False).grad = None
        power = float(torch.as_tensor(answer).double().square().sum())
        self._count({key: value * largest**2 for key, value in found.items()}, power)

    @staticmethod
    def row_squares(module: nn.Module) -> torch.Tensor:
        """Mean squared weight of each output row, float64 [out]."""
        return module.weight.detach().double().square().flatten(1).mean(1).cpu()

    @staticmethod
    def _ask(total, factor: float, largest: float, ask, signs, generator: torch.Generator):
        """Forwards and backwards of one half -> (the answer so far, the signs of its projection)"""
        answer = ask()
        if signs is None:
            signs = torch.randint(0, 2, answer.shape, generator=generator).to(answer) * 2 - 1
        try:
            answer.backward(signs * (factor / largest))    # at most 1: half precision must hold the gradients
        except BaseException:              # torch keeps what was left to do, and its graph, until the thread's next one
            torch.zeros(1, requires_grad=True).sum().backward()
            raise
        return total + factor * answer.detach(), signs

    @contextmanager
    def _taking(self) -> Iterator[dict[str, torch.Tensor]]:
        """While it lasts, finished gradients become rows' squares and leave memory layer by layer."""
        found: dict[str, torch.Tensor] = {}

        def take(key: str, weight: nn.Parameter) -> None:
            found[key] = weight.grad.float().square().flatten(1).sum(1).double().cpu()
            weight.grad = None

        hooks = [module.weight.register_post_accumulate_grad_hook(partial(take, key))
                 for key, module in self.modules.items()]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self, found: dict[str, torch.Tensor], power: float) -> None:
        scale = sum(float((value * self._squares[key]).sum()) for key, value in found.items())
        if not (0 < scale < math.inf and 0 < power < math.inf):        # NaN too
            self.left_out += 1
            return
        for key, value in found.items():
            self.sums[key] = self.sums.get(key, 0) + value / scale
        self.answers += 1
        self._logs = [total + math.log(value) for total, value in zip(self._logs, (scale, power))]

    def rows(self, key: str, out: int, trace: float) -> torch.Tensor:
        """s_o of one layer, float32 [out]; zeros where no gradient came or its inputs are zero. trace: of its gram."""
        if key not in self.sums or not trace > 0:
            return torch.zeros(out)
        return (self.sums[key] * (math.exp(self._logs[0] / self.answers) / (self.answers * trace))).float()

    def noise_power(self) -> float:
        """Squared norm of an answer, geometric mean: what a change of eps is to be compared with."""
        return math.exp(self._logs[1] / self.answers) if self.answers else 0.0


def spread_calls(lengths: Iterable[int], count: int) -> list[tuple[int, int]]:
    """(picture, call) of `count` calls, spread evenly over pictures and, independently, over their calls."""
    lengths = list(lengths)
    pictures = [i for i, length in enumerate(lengths) if length]
    chosen = []
    for k in range(count if pictures else 0):
        picture = pictures[k * len(pictures) // count if count < len(pictures) else k % len(pictures)]
        chosen.append((picture, int((k + 0.5) * GOLDEN % 1.0 * lengths[picture])))
    return chosen


def measure(unet, modules: Mapping[str, nn.Module], drawn: list[Calls], settings: Settings, progress: Progress,
            kind: Callable[..., Sensitivities] = Sensitivities) -> Sensitivities:
    """A few recorded calls, their halves apart (half the memory), forwards and backwards.

    kind(modules): how one is differentiated. UnsupportedError where no gradient was finite.
    """
    found, generator = kind(modules), torch.Generator().manual_seed(settings.seed)
    chosen = spread_calls([len(calls.steps) for calls in drawn], settings.sensitivity_calls)
    progress.start("sensitivities", len(chosen))
    for picture, call in chosen:
        calls = drawn[picture]
        if calls.finite[call]:
            factors = (1 - settings.guidance, settings.guidance) if calls.samples.shape[1] == 2 else (1.0,)
            found.add([(factor, partial(calls.ask, unet, call, half, gradients=True))
                       for half, factor in enumerate(factors)], generator)
        progress.advance(1)
    progress.finish()
    if not found.answers:
        raise UnsupportedError("no gradient of the predicted noise was finite: calibrate with --no-sensitivity, or on "
                               "the CPU")
    return found
