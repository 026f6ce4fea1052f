"""What an error of each output row of each coded layer does to the predicted noise, from a few backward passes.

Let eps be the UNet's answer for one half of one picture, W a layer's weight with gram G of its inputs, D a small error
of W. To first order eps changes by sum_oc D_oc * d eps / d W_oc. Where the entries of D are independent with mean zero
and variance var_o in row o,

    E |change of eps|^2  =  sum_o var_o * sum_c |d eps / d W_oc|^2          (exact to first order)
                         =  sum_o s_o * E[D_o G D_o^T],      s_o = sum_c |d eps / d W_oc|^2 / trace G.

The second form also serves errors that a calibrated encoder has shaped, as an approximation (docs/calibration.md).
With random signs v, E_v (d<v, eps> / d W_oc)^2 = |d eps / d W_oc|^2: one backward pass an answer gives all layers.
The weight's own gradient is used, not that of the layer's output alone, because it sums over positions first: the mean
input makes the same error at every pixel, which attention adds up instead of averaging it out.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import nn

from ..errors import UnsupportedError
from ..progress import Progress
from .calls import Calls
from .settings import GOLDEN, Settings


class Sensitivities:
    """Running sums of squared weight gradients by output row. modules: layer key -> module."""

    def __init__(self, modules: Mapping[str, nn.Module]):
        self.modules = modules
        self.sums: dict[str, torch.Tensor] = {}            # key -> float64 [out]
        self.answers = self.left_out = 0
        self.power = 0.0                                   # sum over answers of |eps|^2

    def add(self, ask: Callable[[], torch.Tensor], generator: torch.Generator) -> None:
        """One forward and one backward pass. ask() -> an answer, with a graph behind it."""
        found: dict[str, torch.Tensor] = {}

        def take(key: str, weight: nn.Parameter) -> None:
            found[key] = weight.grad.float().square().flatten(1).sum(1).double().cpu()
            weight.grad = None             # so that no more than one layer's gradient is in memory

        hooks = []
        try:
            for key, module in self.modules.items():
                module.weight.requires_grad_(True)
                hooks.append(module.weight.register_post_accumulate_grad_hook(partial(take, key)))
            answer = ask()
            answer.backward(torch.randint(0, 2, answer.shape, generator=generator).to(answer) * 2 - 1)
        finally:
            for hook in hooks:
                hook.remove()
            for module in self.modules.values():
                module.weight.requires_grad_(False).grad = None
        self._count(found, float(answer.detach().double().square().sum()))

    def _count(self, found: dict[str, torch.Tensor], power: float) -> None:
        if not all(bool(torch.isfinite(value).all()) for value in (torch.tensor(power), *found.values())):
            self.left_out += 1
            return
        for key, value in found.items():
            self.sums[key] = self.sums.get(key, 0) + value
        self.answers += 1
        self.power += power

    def rows(self, key: str, out: int, trace: float) -> torch.Tensor:
        """s_o of one layer, float32 [out]; zeros where no gradient came or its inputs are zero. trace: of its gram."""
        if key not in self.sums or not trace > 0:
            return torch.zeros(out)
        return (self.sums[key] / (self.answers * trace)).float()

    def noise_power(self) -> float:
        """Mean squared norm of an answer: what a change of eps is to be compared with."""
        return self.power / max(1, self.answers)


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
            for half in range(calls.samples.shape[1]):
                found.add(partial(calls.ask, unet, call, half, gradients=True), generator)
        progress.advance(1)
    progress.finish()
    if not found.answers:
        raise UnsupportedError("no gradient of the predicted noise was finite: calibrate with --no-sensitivity, or on "
                               "the CPU")
    return found
