"""How a code's error grows when its targets are larger than the weights its scales were made for.

Error feedback hands every column the errors of those before it: targets grow, and beyond a code's range errors grow
faster than they. Measured here on Gaussian columns when a plan is made (1 s), so that no constants can go stale.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from ...kernels.dispatch import decode_part
from ..encode import encoder_for
from ..encode.trellis import FEEDBACK_SCALE, SAMPLE_WINDOW, coding_error
from ..spec import Spec, TrellisSpec

VARIANCES = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
ROWS, COLUMNS = 64, 128                    # of Gaussian targets coded at each variance


@dataclass(frozen=True)
class Response:
    """errors: squared error at each of VARIANCES of the targets, scales made for 1; gain: error with window 12 over
    error with the sample's window, 1 where a sample is coded as the layer will be."""

    errors: np.ndarray
    gain: float

    def relative(self, variance: np.ndarray) -> np.ndarray:
        """Squared error at these variances over the error at 1; straight between the logarithms."""
        logs = np.log(np.clip(variance, VARIANCES[0], None))
        known = np.log(VARIANCES)
        slope = 1.0                        # far outside everything is lost: the error is the target itself
        found = np.interp(logs, known, np.log(self.errors)) + slope * np.maximum(0, logs - known[-1])
        return np.exp(found) / self.errors[VARIANCES.index(1.0)]


@cache
def response(spec: Spec) -> Response:
    """Of one spec."""
    targets = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))         # [rows, columns]
    if isinstance(spec, TrellisSpec):
        errors = [coding_error(targets * v**0.5, spec, spec.window, FEEDBACK_SCALE) for v in VARIANCES]
        plain = [coding_error(targets, spec, window) for window in (spec.window, SAMPLE_WINDOW)]
        return Response(np.asarray(errors), plain[0] / plain[1])
    levels = _levels(targets.reshape(4, -1), spec)
    return Response(np.asarray([_nearest(targets * v**0.5, levels) for v in VARIANCES]), 1.0)


def _levels(rows: torch.Tensor, spec: Spec) -> torch.Tensor:
    """The values that a scalar code has for a row."""
    part = encoder_for(spec.kind)(rows, spec, channels=rows.shape[1], taps=1)
    return torch.unique(decode_part(part)[0])


def _nearest(targets: torch.Tensor, levels: torch.Tensor) -> float:
    middles = (levels[1:] + levels[:-1]) / 2
    return float((targets - levels[torch.bucketize(targets, middles)]).double().square().mean())
