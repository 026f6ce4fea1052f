"""Which expert answers at which noise: boundaries between noise levels (sigma), and sigmas of a model's timesteps.

TuneQDM (arXiv 2401.04339, section 4.2) splits timesteps; sigma is what every sampler and host has, so it decides here.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import UnsupportedError

MOST_EXPERTS = 16
LEAST_ALPHA = 2.0**-24                     # of schedules that end at no signal at all (zero terminal SNR)


class NoiseTable:
    """A model's noise schedule. alphas: how much of a picture is left at each timestep, [timesteps]."""

    def __init__(self, alphas: torch.Tensor):
        alphas = alphas.double().clamp(min=LEAST_ALPHA)
        self._logs = ((1 - alphas) / alphas).log() / 2                     # [timesteps], of sigma

    @staticmethod
    def of(scheduler, name: str) -> NoiseTable:
        """Of a diffusers scheduler; UnsupportedError where noise is not counted in timesteps."""
        if getattr(scheduler, "alphas_cumprod", None) is None:
            raise UnsupportedError(f"'{name}' has a noise schedule of its own kind ({type(scheduler).__name__}), and "
                                   f"adapters are trained on those of SD and SDXL: use another model")
        return NoiseTable(scheduler.alphas_cumprod)

    def sigmas(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Noise at these timesteps, which may lie between two, float64 of the same shape on the CPU."""
        times = timesteps.detach().double().cpu().clamp(0, len(self._logs) - 1)
        low = times.floor().long().clamp(max=len(self._logs) - 2)
        return torch.lerp(self._logs[low], self._logs[low + 1], times - low).exp()

    def boundaries(self, experts: int) -> tuple[float, ...]:
        """Sigmas, ascending, at which equal shares of the timesteps meet: half a timestep below the first of the next.

        Two experts of 1000 timesteps: 499 is the first one's, 500 the second's, however their sigmas were rounded.
        """
        steps = len(self._logs)
        starts = torch.tensor([-(-steps * k // experts) - 0.5 for k in range(1, experts)], dtype=torch.float64)
        return tuple(float(sigma) for sigma in self.sigmas(starts))


def experts_of(sigmas: torch.Tensor, boundaries: Sequence[float]) -> list[int]:
    """The expert of every sample by its noise [n]: 0 below the first boundary; one at a boundary is above it."""
    edges = torch.tensor(boundaries, dtype=torch.float64)
    return torch.bucketize(sigmas.detach().double().cpu().reshape(-1), edges, right=True).tolist()
