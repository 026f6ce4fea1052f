"""Who is ahead at equal stored bits: our rate curve read at a peer's bits, prompt by prompt, and a verdict in words."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from alias import load_vqpack

load_vqpack()
from vqpack.vq_core.metrics import Interval, paired_bootstrap  # noqa: E402

LEAST_SHARE = 0.95                         # of the weights coded on both sides, else no claim
Curve = Sequence[tuple[float, torch.Tensor]]


@dataclass(frozen=True)
class Verdict:
    """ahead: ours is better and the interval excludes zero; behind: worse; undecided; no claim, with the reason."""

    word: str
    reason: str = ""
    ours_bits: float | None = None         # where our curve was read
    difference: Interval | None = None     # ours minus the peer's


def judge(values: torch.Tensor, bits: float, share: float, curve: Curve, statistic: str = "median") -> Verdict:
    """Compare a peer's values [n], one a prompt and more is better, with our curve [(bits, values [n])].

    Our values are interpolated between neighboring rates, never prolonged: above our highest rate that rate stands
    for us, and below our lowest there is no claim. share: of the weights in question that the peer codes.
    """
    if share < LEAST_SHARE:
        return Verdict("no claim", f"it codes {100 * share:.0f} % of these weights")
    if len(curve) < 2:
        return Verdict("no claim", "our curve has fewer than two rates")
    lowest, highest = min(rate for rate, _ in curve), max(rate for rate, _ in curve)
    if bits < lowest:
        return Verdict("no claim", f"it stores {bits:.2f} bits, our lowest rate {lowest:.2f}")
    ours_bits = min(bits, highest)
    gap = paired_bootstrap(read_curve(curve, ours_bits), values, statistic)
    reason = f"ours at its top rate, {bits - highest:.2f} bits fewer" if bits > highest else ""
    if not gap.excludes_zero:
        return Verdict("undecided", reason, ours_bits, gap)
    return Verdict("ahead" if gap.low > 0 else "behind", reason, ours_bits, gap)


def read_curve(curve: Curve, bits: float) -> torch.Tensor:
    """Values [n] at `bits`, linear in bits between the two neighboring rates; bits must lie within the curve."""
    points = sorted(((rate, values.double()) for rate, values in curve), key=lambda point: point[0])
    for (low, before), (high, after) in zip(points, points[1:]):
        if low <= bits <= high:
            share = (bits - low) / (high - low)
            return before + share * (after - before)
    raise ValueError(f"expected bits within {points[0][0]:.3f} and {points[-1][0]:.3f}, got {bits:.3f}")
