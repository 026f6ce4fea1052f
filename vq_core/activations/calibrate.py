"""calibrate_activations(): recorded calls are made again while hooks keep the ranges of all activations."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..calibration.calls import Calls
from ..calibration.settings import HELD_OUT_SHARE, held_out_of
from ..errors import PlanError, UnsupportedError
from ..progress import Progress
from .levels import levels_of
from .points import Point, find_points, tokens_first
from .ranges import Ranges, Seen
from .specs import BINS

SAMPLES = 4096                             # elements kept of each point, by which the axis of its groups is chosen


def calibrate_activations(unet: nn.Module, drawn: Sequence[Calls], samples: int = SAMPLES, seed: int = 0,
                          progress: Progress | None = None) -> Ranges:
    """Ranges of all activations in recorded calls (calibration.calls.draw), at the model whose activations are meant.

    unet: with dense or coded layers, activations not quantized. drawn: one entry a picture, all of one size. Ranges
    are those of three quarters of the pictures, samples come from the others; a single picture gives both.
    PlanError for several sizes, UnsupportedError where no call was finite.
    """
    sizes = {tuple(calls.samples.shape[3:]) for calls in drawn}
    if len(sizes) > 1:
        raise PlanError(f"activations are calibrated with pictures of one size, got latents of {sorted(sizes)}: draw "
                        f"them alike")
    progress = progress or Progress()
    held = held_out_of(len(drawn), HELD_OUT_SHARE)
    asked = [(calls, call, {"sample": picture in held or not held, "widen": picture not in held})
             for picture, calls in enumerate(drawn) for call, finite in enumerate(calls.finite) if finite]
    sampled = sum(use["sample"] for *_, use in asked)
    if not sampled or not any(use["widen"] for *_, use in asked):
        raise UnsupportedError("no recorded call of the UNet was finite, or none of the held-out ones: draw with "
                               "another sampler or checkpoint")
    levels = levels_of([float(told) for calls in drawn for told in calls.timesteps])
    seen = {point: Seen(point.channels) for point in find_points(unet)}
    now, left_out = {}, set()
    hooks = [_listen(unet, point, seen[point], now, left_out, -(-samples // sampled), seed) for point in seen]
    progress.start("activation ranges", len(asked))
    try:
        for number, (calls, call, use) in enumerate(asked):
            now.update(use, bin=int(levels.intervals_of(calls.timesteps[call][None], BINS)), call=number)
            calls.ask(unet, call)
            progress.advance(1)
    finally:
        for hook in hooks:
            hook.remove()
    progress.finish()
    found = {point.name: ranges for point, one in seen.items() if (ranges := one.ranges()) is not None}
    return Ranges(levels, found, len(asked), len(left_out))


def _listen(unet: nn.Module, point: Point, seen: Seen, now: dict[str, int], left_out: set[int], samples: int,
            seed: int):
    """A hook at one point. Points that see the same values keep the same samples, so the file holds them once."""
    def keep(x: torch.Tensor) -> None:
        if not bool(torch.isfinite(x).all()):
            left_out.add(now["call"])
            return
        tokens = tokens_first(x.detach(), point.convolution)
        if now["widen"]:
            seen.widen(tokens, now["bin"])
        if now["sample"]:
            seen.sample(tokens, now["bin"], samples, torch.Generator().manual_seed(seed * 1_000_003 + now["call"]))

    module = unet.get_submodule(point.module)
    if point.side == "output":
        return module.register_forward_hook(lambda _, __, output: keep(output))
    return module.register_forward_pre_hook(lambda _, args: keep(args[0]))
