"""A plan in words: the table of its rates and what it promises, and its drawing's data."""
from __future__ import annotations

from collections.abc import Iterator

from ..arch import UNET_PREFIX
from ..describe import size, spec_name
from .draw import Mark
from .run import Planned

GUESS = ("no calibration and no sensitivities were given: what each layer matters is a guess from its kind, resolution "
         "and depth; `vqpack calibrate` measures it")


def describe(planned: Planned) -> str:
    """The text of `vqpack plan`."""
    lines = [f"{'rate':14s} {'layers':>6s} {'weights':>8s} {'bytes':>10s}"]
    weights = sum(row.layer.numel for row in planned.layers)
    for name, rows in sorted(_by_rate(planned).items(), key=lambda pair: _rate(pair[1][0].spec)):
        share = sum(row.layer.numel for row in rows) / weights
        lines.append(f"{name:14s} {len(rows):6d} {share:7.1%} {size(sum(row.nbytes for row in rows)):>11s}")
    lines.append(f"coded layers {planned.bits:.3f} bits a weight, file at most {size(planned.file_bytes)}")
    if planned.snr is not None:
        lines.append(f"predicted noise {planned.snr:.1f} dB above its change (SNR)")
    if planned.gap > 1e-6:
        lines.append(f"the best plan loses at most {planned.gap:.2%} less")
    if planned.guessed:
        lines.append(GUESS)
    return "\n".join(lines)


def subtitle(planned: Planned) -> str:
    """One line under the drawing's title."""
    promise = f"{planned.bits:.2f} bits a weight, file at most {size(planned.file_bytes)}"
    if planned.snr is not None:
        promise += f", predicted SNR of the noise {planned.snr:.1f} dB"
    return promise + (", layers' importance guessed" if planned.guessed else "")


def marks(planned: Planned) -> Iterator[Mark]:
    """The layers as the drawing wants them."""
    for row in planned.layers:
        name = row.layer.key.removeprefix(UNET_PREFIX).removesuffix(".weight")
        rate = None if row.spec.kind == "dense" else float(row.spec.bits)
        yield Mark(name, name.split(".")[0], row.layer.role, row.layer.numel, rate, row.nbytes)


def _by_rate(planned: Planned) -> dict[str, list]:
    found: dict[str, list] = {}
    for row in planned.layers:
        found.setdefault("kept" if row.spec.kind == "dense" else spec_name(vars(row.spec) | {"kind": row.spec.kind}),
                         []).append(row)
    return found


def _rate(spec) -> float:
    return 99.0 if spec.kind == "dense" else float(spec.bits)
