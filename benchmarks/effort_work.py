"""What the stages of `quantize --effort` take beside one another, in CPU time on the testbed: effort.py's constants.

    python benchmarks/effort_work.py        about 2 minutes of one core

Every fourth layer of the middle block stands for all. Prints the ratios that vq_core/effort.py multiplies measured
speeds with.
"""
from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from alias import ROOT, load_vqpack

load_vqpack()
from vqpack.vq_core.arch import layers as arch_layers  # noqa: E402
from vqpack.vq_core.calibration import Calibration  # noqa: E402
from vqpack.vq_core.calibration import run as calibrating  # noqa: E402
from vqpack.vq_core.encode import encode_weight  # noqa: E402
from vqpack.vq_core.encode.feedback import make_feedback  # noqa: E402
from vqpack.vq_core.gram import Gram  # noqa: E402
from vqpack.vq_core.planning.costs import Costs  # noqa: E402
from vqpack.vq_core.planning.run import candidates  # noqa: E402
from vqpack.vq_core.progress import Progress  # noqa: E402
from vqpack.vq_core.source import open_source  # noqa: E402
from vqpack.vq_core.spec import AdditiveSpec, TrellisSpec  # noqa: E402

TESTBED = ROOT / "testbed" / "pipe"
PICTURES, STEPS, WIDTH = 4, 25, 1280


class Stages(Progress):
    """CPU time of each stage."""

    def __init__(self):
        super().__init__()
        self.seconds, self._now = {}, None

    def start(self, stage: str, *args, **named) -> None:
        self._stop()
        self._now = stage, time.process_time()
        super().start(stage, *args, **named)

    def _stop(self) -> None:
        if self._now:
            stage, started = self._now
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - started
        self._now = None

    def finish(self) -> None:
        self._stop()
        super().finish()


def timed(work) -> float:
    """CPU seconds of work()."""
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    """Calibrate with a few pictures, then code and cost some layers in every way."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        stages = Stages()
        path = calibrating.calibrate(TESTBED, Path(folder) / "few", count=PICTURES, steps=STEPS, progress=stages).path
        call = stages.seconds["drawing"] / (PICTURES * STEPS)
        print(f"call {call:.3f} s; capturing {stages.seconds['capturing'] / (PICTURES * 8) / call:.2f} calls a call, "
              f"sensitivities {stages.seconds['sensitivities'] / call:.0f} calls")
        with Calibration(path) as calibration, open_source(TESTBED) as source:
            layers = [layer for layer in arch_layers(source)
                      if not layer.dense and "middle_block" in layer.key and layer.component == "unet"][::4]
            loaded = [(layer, source.load_float(layer.key)) for layer in layers]
            grams = {layer.key: calibration.gram(layer.key) for layer in layers}
            coding_all(loaded, grams, calibration)


def coding_all(loaded, grams, calibration) -> None:
    """Print what coding and planning these layers takes."""
    def coding(spec, calibrated=False, **options) -> float:
        return timed(lambda: [encode_weight(weight, spec, splits=layer.splits,
                                            gram=grams[layer.key] if calibrated else None, **options)
                              for layer, weight in loaded])

    count = sum(layer.numel for layer, _ in loaded)
    coding(TrellisSpec(3))                 # compiles
    plain = coding(TrellisSpec(3))
    for calibrated in (False, True):
        costs = Costs(candidates("trellis"), lambda *_: 1.0, calibration if calibrated else None)
        spent = timed(lambda costs=costs: [costs.of(layer, weight) for layer, weight in loaded])
        print(f"planning {len(loaded)} layers, {'with a calibration' if calibrated else 'the first time'}: "
              f"{spent / plain * count / 1e6:.1f} M weights coded in the time")
    factored = timed(lambda: [make_feedback(gram) for gram in grams.values()])
    print(f"factoring their grams once: {factored / plain * count / 1e6:.1f} M weights")
    normal = coding(AdditiveSpec(2), True)
    print(f"additive: calibrated {normal / coding(AdditiveSpec(2)):.1f} of data-free; search "
          f"fast {coding(AdditiveSpec(2), True, effort='fast') / normal:.2f}, "
          f"best {coding(AdditiveSpec(2), True, effort='best') / normal:.2f} of normal")
    wide_layer()


def wide_layer() -> None:
    """Print what a calibration costs a linear layer of SDXL's width."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDTH, WIDTH, generator=generator)
    inputs = torch.randn(2, 3 * WIDTH, WIDTH, generator=generator) @ torch.randn(WIDTH, WIDTH, generator=generator)
    grams = [(x.t() @ x / len(x))[None] for x in inputs]
    gram = Gram(grams[0], 3 * WIDTH, grams[1], 3 * WIDTH)
    plain, factored, calibrated = (timed(work) for work in (
        lambda: encode_weight(weight, TrellisSpec(3)), lambda: make_feedback(gram),
        lambda: encode_weight(weight, TrellisSpec(3), gram=gram)))
    print(f"trellis, {WIDTH} x {WIDTH}: coding {plain:.2f} s, factoring {factored:.2f} s, calibrated {calibrated:.2f} "
          f"s: without two factorings {(calibrated - 2 * factored) / plain:.1f} of coding")


if __name__ == "__main__":
    main()
