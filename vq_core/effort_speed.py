"""How fast this machine does what `quantize --effort` is made of, measured on samples of a second or less."""
from __future__ import annotations

import time
from dataclasses import dataclass, replace
from math import prod

from .arch import layers as arch_layers
from .progress import Progress
from .source import open_source
from .spec import Spec

COLUMNS = 1024                             # of the gram that is timed
LEARNED = 512                              # rows and columns of the layer whose passes are timed


@dataclass(frozen=True)
class Speed:
    """This machine and model."""

    weight: float                          # seconds to code one weight data-free, all workers at once
    factoring: float                       # seconds to choose damping for all layers' grams and to factor them, once
    call: float = 0.0                      # seconds of one call of the UNet at the picture's size, both halves
    sums: float = 0.0                      # seconds to add one call's inputs to all grams
    weights: int = 0                       # coded, in so many layers
    layers: int = 0
    steps: int = 25                        # of the sampler
    timesteps: int = 8                     # looked at in each picture
    learning: float = 0.0                  # seconds to decode one weight for both passes and to gather its gradient
    together: int = 8                      # calls of a tuning step that share this


def measure(source, spec: Spec, drawn: bool, preset: str, configs, device: str | None) -> Speed:
    """This machine's speed with this model; the UNet is only asked where something may be drawn."""
    from .calibration.settings import FULL_COLUMNS, TIMESTEPS, preset_settings
    from .encode import estimate_speed
    from .quantize import best_device
    from .workers import worker_count

    device = device or best_device()
    with open_source(source) as opened:
        shapes = [layer.shape for layer in arch_layers(opened) if layer.component == "unet" and not layer.dense]
    sizes = [(1, prod(s[1:])) if prod(s[1:]) <= FULL_COLUMNS else (prod(s[2:]), s[1]) for s in shapes]
    sums, factoring = _gram_seconds(device)
    return Speed(1 / estimate_speed(spec, device, worker_count(device)),
                 sum(blocks * size**3 for blocks, size in sizes) * factoring / worker_count(device),
                 _call_seconds(source, preset, configs, device) if drawn else 0.0,
                 sum(blocks * size**2 for blocks, size in sizes) * sums, sum(map(prod, shapes)), len(shapes),
                 preset_settings(preset, (64, 64)).steps, TIMESTEPS, _learning_seconds(spec, device) if drawn else 0.0,
                 together(device))


def together(device: str) -> int:
    """Calls that a tuning step makes at once: all on the CPU, elsewhere one, which takes the least memory."""
    from .tuning.settings import Tuning

    return Tuning.batch if device == "cpu" else 1


def _gram_seconds(device: str) -> tuple[float, float]:
    """(seconds a number of a gram to add one call's inputs, seconds a cubed column to factor one)"""
    import torch

    from .calibration.settings import TOKENS
    from .encode.feedback import make_feedback
    from .gram import Gram

    rows = torch.randn(2, TOKENS, COLUMNS, generator=torch.Generator().manual_seed(0))
    grams, moved = [(x.t() @ x / TOKENS)[None] for x in rows], rows[0].to(device)
    started = time.monotonic()
    float((moved.t() @ moved)[0, 0])       # waits for the device
    added = time.monotonic()
    make_feedback(Gram(grams[0], TOKENS, grams[1], TOKENS))
    return (added - started) / COLUMNS**2, (time.monotonic() - added) / COLUMNS**3


def _call_seconds(source, preset: str, configs, device: str) -> float:
    from .calibration.settings import Picture, preset_settings
    from .calibration.teacher import CheckpointTeacher

    teacher = CheckpointTeacher(source, device, configs)
    settings = replace(preset_settings(preset, teacher.size()), steps=1, timesteps=1)
    try:
        teacher.open()
        for _ in range(2):                 # the first one warms up
            started = time.monotonic()
            teacher.draw(Picture(0, "a", 0, False), settings, Progress())
        return time.monotonic() - started
    finally:
        teacher.close()


def _learning_seconds(spec: Spec, device: str) -> float:
    """A weight's share of a forward and a backward pass through a layer that sees two inputs."""
    import torch

    from .encode import encode_weight
    from .layers import VQLinear
    from .tuning.coded import TunedLayer
    from .tuning.masters import Trained

    weight = torch.randn(LEARNED, LEARNED, generator=torch.Generator().manual_seed(0))
    layer = TunedLayer(VQLinear(encode_weight(weight, spec, device=device).weight.to(device)), Trained(), {})
    x = torch.ones(2, LEARNED, device=device, requires_grad=True)
    for _ in range(2):                     # the first one warms up
        started = time.monotonic()
        layer(x).sum().backward()
        float(x.grad[0, 0])                # waits for the device
    return (time.monotonic() - started) / LEARNED**2
