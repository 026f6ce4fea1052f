"""From drawn pictures to numbers: what one picture is measured by, and medians with intervals over the prompts."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from .. import metrics
from ..trajectory import Trajectory, latent_psnr_along


@dataclass(frozen=True)
class Metric:
    """One column of the report."""

    name: str
    title: str
    unit: str
    statistic: str                         # over the prompts; the median where one mirrored picture decides any mean
    digits: int
    meaning: str
    higher_is_better: bool = True


METRICS = (
    Metric("latent_psnr", "Latent PSNR", "dB", "median", 1, "final latents against the reference's"),
    Metric("image_psnr", "Picture PSNR", "dB", "median", 1, "8-bit pictures against the reference's"),
    Metric("ssim", "SSIM", "", "mean", 3, "structural similarity of the pictures, 1 = equal"),
    Metric("lpips", "LPIPS", "", "mean", 3, "perceptual distance of the pictures, 0 = equal", False),
    Metric("noise_snr", "Prediction SNR", "dB", "median", 1,
           "what the UNet predicts on the reference's own way, first seed, mean over the steps"),
)


def measure(picture: torch.Tensor, theirs: torch.Tensor, way: Trajectory, reference: Trajectory) -> dict:
    """One picture against the reference's of the same prompt and seed -> metric -> value, and `steps`.

    picture, theirs: uint8 [height, width, 3].
    """
    ours, theirs = _pixels(picture), _pixels(theirs)
    values = {"latent_psnr": metrics.latent_psnr(way.latents, reference.latents),
              "image_psnr": float(metrics.image_psnr(ours, theirs)[0]), "ssim": float(metrics.ssim(ours, theirs)[0])}
    perceptual = metrics.lpips(ours, theirs)
    if perceptual is not None:
        values["lpips"] = float(perceptual[0])
    values["steps"] = latent_psnr_along(way, reference)[:, 0].tolist()
    return values


def per_prompt(values: Sequence[Sequence[Mapping | None]], name: str) -> list[float]:
    """values[prompt][seed] -> one mean a prompt, over the seeds that have the metric, for prompts that have any."""
    seeds_of = ([value[name] for value in seeds if value is not None and name in value] for seeds in values)
    return [sum(found) / len(found) for found in seeds_of if found]


def summary(values: Sequence[Sequence[Mapping | None]]) -> dict[str, dict]:
    """Metric -> {"low", "value", "high", "count"} of one checkpoint; metrics that nothing has are left out."""
    result = {}
    for metric in METRICS:
        found = per_prompt(values, metric.name)
        if found:
            result[metric.name] = _as_dict(metrics.bootstrap(found, metric.statistic))
    return result


def difference(ours: Sequence[Sequence[Mapping | None]], other: Sequence[Sequence[Mapping | None]]) -> dict[str, dict]:
    """The same for `ours` minus `other`, prompt by prompt; empty where they have not drawn the same prompts."""
    result = {}
    for metric in METRICS:
        a, b = per_prompt(ours, metric.name), per_prompt(other, metric.name)
        if a and len(a) == len(b) == len(ours):
            interval = metrics.paired_bootstrap(a, b, metric.statistic)
            result[metric.name] = {**_as_dict(interval), "excludes_zero": interval.excludes_zero}
    return result


def step_curve(values: Sequence[Sequence[Mapping | None]]) -> list[float]:
    """Median over all pictures of the latent PSNR after each step, dB."""
    curves = [value["steps"] for seeds in values for value in seeds if value is not None]
    return [median(step) for step in zip(*curves)]


def _as_dict(interval: metrics.Interval) -> dict:
    return {"low": interval.low, "value": interval.value, "high": interval.high, "count": interval.count}


def _pixels(picture: torch.Tensor) -> torch.Tensor:
    """uint8 [height, width, 3] -> [1, 3, height, width], 0 to 1"""
    return picture.permute(2, 0, 1)[None].double() / 255
