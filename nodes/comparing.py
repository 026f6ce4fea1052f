"""Two models on the same noise: the host's sampler draws with both, vq_core.metrics measures, words say the rest."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from ..vq_core import metrics
from ..vq_core.compare.gallery_record import Settings
from ..vq_core.errors import UnsupportedError
from ..vq_core.progress import Progress
from . import host

MOST_STATES = 12                           # steps whose latents are kept and said; more would not be read
MEANING = "Distances say how far B's pictures are from A's, not which are better."


@dataclass
class Way:
    """What one model drew, on the CPU in float32, and the way to it."""

    latents: torch.Tensor | None = None                                # [n, channels, h, w]
    first: tuple[torch.Tensor, torch.Tensor] | None = None             # state and denoised of step 1
    states: dict[int, torch.Tensor] = field(default_factory=dict)      # step -> latents after it


def check_models(a, b) -> None:
    """UnsupportedError where two models do not draw into the same latents, or not into pictures."""
    ours, theirs = host.latent_format(b), host.latent_format(a)
    for kind, letter in ((theirs, "A"), (ours, "B")):
        if kind.latent_dimensions != 2:
            raise UnsupportedError(f"model {letter} draws {type(kind).__name__} latents, which are no pictures: "
                                   f"connect models that draw pictures")
    if type(ours) is not type(theirs) or ours.latent_channels != theirs.latent_channels:
        raise UnsupportedError(f"model A draws {type(theirs).__name__} latents and model B {type(ours).__name__}: "
                               f"connect two models of one kind, e.g. a checkpoint and its VQ file")


def draw(model, letter: str, positive, negative, settings: Settings, progress: Progress) -> Way:
    """One model from the noise of the seed; advances `progress` by its steps."""
    way, every = Way(), math.ceil(settings.steps / MOST_STATES)

    def callback(step: int, denoised: torch.Tensor, state: torch.Tensor, total: int) -> None:
        if step == 0:
            way.first = (_kept(state), _kept(denoised))
        elif step % every == 0:
            way.states[step] = _kept(state)
        progress.advance(1, f"{letter}: step {step + 1} of {total}")

    empty = host.empty_latents(model, settings.count, settings.height, settings.width)
    drawn = host.sample(model, empty, settings.seed, settings.steps, settings.cfg, settings.sampler,
                        settings.scheduler, positive, negative, callback)
    way.latents = _kept(drawn)
    return way


def decode(vae, latents: torch.Tensor) -> torch.Tensor:
    """The host's VAE as VAEDecode uses it -> pictures [n, height, width, 3], 0 to 1"""
    pictures = vae.decode(latents)
    return pictures.reshape(-1, *pictures.shape[-3:]) if pictures.dim() == 5 else pictures


def measure(a: Way, b: Way, pictures: tuple[torch.Tensor, torch.Tensor] | None) -> dict[str, list[float]]:
    """Metric -> one number a picture, B against A; {} where A drew values that are no numbers.

    pictures: of A and B [n, height, width, 3], None without a VAE: then latents only.
    """
    if not a.latents.isfinite().all():
        return {}
    values = {"latent_psnr": _latent_psnr(b.latents, a.latents)}
    if pictures is not None:
        theirs, ours = (x.movedim(-1, 1).nan_to_num(0).clamp(0, 1) for x in pictures)
        values |= {"image_psnr": metrics.image_psnr(ours, theirs).tolist(), "ssim": metrics.ssim(ours, theirs).tolist()}
    return values


def describe(a: Way, b: Way, values: dict[str, list[float]], settings: Settings) -> str:
    """The words of the node; values: of `measure`."""
    n = settings.count
    lines = [f"B against A: {n} picture{'s' * (n != 1)} of {settings.width} x {settings.height}, {settings.steps} "
             f"steps, {settings.sampler}, {settings.scheduler}, cfg {settings.cfg:g}, seed {settings.seed}"]
    if not values:
        return "\n".join([*lines, "A drew values that are no numbers (NaN): nothing can be measured against it"])
    if torch.equal(a.latents, b.latents):
        return "\n".join([*lines, "identical: B draws exactly what A draws"])
    lines.append(f"latent PSNR: {_decibels(values['latent_psnr'])}")
    if "ssim" in values:
        lines += [f"picture PSNR: {_decibels(values['image_psnr'])}", f"SSIM: {_spread(values['ssim'], '.3f')}"]
    return "\n".join([*lines, *_on_the_way(a, b), MEANING])


def _on_the_way(a: Way, b: Way) -> list[str]:
    """The first prediction, made on the same noise, and the latents after some steps."""
    lines = []
    if a.first and b.first and torch.equal(a.first[0], b.first[0]):
        noise = [state - denoised for state, denoised in (a.first, b.first)]
        lines.append(f"prediction SNR of the first step: {_decibels(metrics.noise_snr(noise[1], noise[0]).tolist())}")
    both = sorted(set(a.states) & set(b.states))
    if both:
        values = (f"{step}: {_number(median(_latent_psnr(b.states[step], a.states[step])), '.1f')}" for step in both)
        lines.append(f"latent PSNR after step {', '.join(values)} dB")
    return lines


def _latent_psnr(ours: torch.Tensor, theirs: torch.Tensor) -> list[float]:
    """One value a picture."""
    return [metrics.latent_psnr(x, y) for x, y in zip(ours, theirs)]


def _decibels(values: Sequence[float]) -> str:
    return f"{_spread(values, '.1f')}{'' if all(map(math.isinf, values)) else ' dB'}"


def _spread(values: Sequence[float], form: str) -> str:
    """The value of one picture; of several their median, lowest and highest."""
    if len(values) == 1:
        return _number(values[0], form)
    return (f"median {_number(median(values), form)}, {_number(min(values), form)} to {_number(max(values), form)}")


def _number(value: float, form: str) -> str:
    if math.isinf(value):
        return "identical" if value > 0 else "no number"
    return "no number" if math.isnan(value) else f"{value:{form}}"


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
