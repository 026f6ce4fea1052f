"""What a weight is expected to lose at a rate, data-free: squared error over squared norm, measured elsewhere.

From benchmarks/weight_error.py (ten of SDXL's layers, trained-like random weights) where it has the rate. Codes that
hardly mind outliers (trellis, product) are filled up from benchmarks/gaussian.py, others are left out: palette 4 loses
0.023 there and 0.0095 on a Gaussian. A checkpoint's own layers may differ; the finished file's report has the truth.
"""
from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from .arch import Layer
from .spec import Spec

ERRORS = MappingProxyType({
    "trellis": {1: 0.27, 1.5: 0.14, 2: 0.069, 2.5: 0.036, 3: 0.018, 3.5: 0.0098, 4: 0.0046, 5: 0.0012, 6: 0.00034},
    "additive": {1: 0.3, 2: 0.087, 3: 0.025, 4: 0.0077},
    "product": {1: 0.32, 2: 0.092, 3: 0.029, 4: 0.0075},
    "palette": {1: 0.47, 2: 0.19, 4: 0.023, 6: 0.0016, 8: 0.0001},
    "uniform": {2: 0.16, 3: 0.058, 4: 0.02},
})


def expected_error(coded: Iterable[tuple[Layer, Spec]]) -> float | None:
    """Mean over the weights of these layers; None where one of their codes was not measured, or there are none."""
    lost, weights = 0.0, 0
    for layer, spec in coded:
        error = ERRORS.get(spec.kind, {}).get(getattr(spec, "bits", None))
        if error is None:
            return None
        lost, weights = lost + error * layer.numel, weights + layer.numel
    return lost / weights if weights else None
