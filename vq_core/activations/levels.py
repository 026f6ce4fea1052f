"""Which stretch of the way from noise to picture a call belongs to: by its noise level, never by a step's number."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import UnsupportedError

DISCRETE = (0.0, 1000.0)                   # timesteps of models trained on a thousand of them
LOG_SIGMA = (-1.6, 1.2)                    # ln(sigma) / 4 from 0.0017 to 121, what EDM models are told


@dataclass(frozen=True)
class Levels:
    """The range of what the UNet is told about the noise; either kind is a function of sigma alone."""

    low: float
    high: float

    def intervals_of(self, told: torch.Tensor, count: int) -> torch.Tensor:
        """Timesteps as the UNet got them, [n] -> which of `count` equal intervals they lie in, int64 [n]."""
        place = (told.double() - self.low) / (self.high - self.low)
        return (place * count).floor_().clamp_(0, count - 1).long()


def levels_of(told: Sequence[float]) -> Levels:
    """What kind of levels a model's timesteps are (calls.noise_levels tells them apart alike)."""
    discrete = min(told) >= 0 and max(told) <= 1000 and max(told) > 20
    return Levels(*(DISCRETE if discrete else LOG_SIGMA))


class Clock:
    """Keeps what the UNet was told in the call that runs; a forward pre-hook with keyword arguments."""

    def __init__(self, levels: Levels | None):
        self.levels, self.told = levels, torch.zeros(1)

    def __call__(self, module, args: tuple, named: dict) -> None:
        told = named["timestep"] if "timestep" in named else args[1]
        self.told = torch.as_tensor(told).detach().reshape(-1)

    def intervals(self, count: int, samples: int, device: torch.device) -> torch.Tensor:
        """Of the samples of a batch, int64 [samples], or [1] where all have the same."""
        found = self.levels.intervals_of(self.told, count).to(device)
        if len(found) not in (1, samples):
            raise UnsupportedError(f"a layer works on {samples} samples in a call of {len(found)} timesteps, expected "
                                   f"one timestep or one a sample: use activations without tables ('int8')")
        return found
