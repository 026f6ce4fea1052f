"""What the stages of `quantize --effort` take beside one another, in CPU time on the testbed: effort.py's constants.

    python benchmarks/effort_work.py        a minute and a half of one core

Two pictures and four layers of the middle block stand for all, a layer of SDXL's width for what factoring leaves out.
Prints the constants that vq_core/effort.py multiplies measured speeds with, as they stand there.
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
from vqpack.vq_core.calibration.settings import Picture, preset_settings  # noqa: E402
from vqpack.vq_core.calibration.teacher import CheckpointTeacher  # noqa: E402
from vqpack.vq_core.encode import encode_weight  # noqa: E402
from vqpack.vq_core.encode.feedback import make_feedback  # noqa: E402
from vqpack.vq_core.gram import Gram  # noqa: E402
from vqpack.vq_core.planning.costs import Costs  # noqa: E402
from vqpack.vq_core.planning.run import candidates  # noqa: E402
from vqpack.vq_core.progress import Progress  # noqa: E402
from vqpack.vq_core.source import open_source  # noqa: E402
from vqpack.vq_core.spec import AdditiveSpec, ProductSpec, TrellisSpec  # noqa: E402

TESTBED = ROOT / "testbed" / "pipe"
PICTURES, STEPS, WIDTH = 2, 10, 1280


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
        print(f"GRADIENTS = {stages.seconds['sensitivities'] / call:.0f}    # a call takes {call:.3f} s", flush=True)
        with Calibration(path) as calibration, open_source(TESTBED) as source:
            layers = [layer for layer in arch_layers(source)
                      if not layer.dense and "middle_block" in layer.key and layer.component == "unet"][::4]
            loaded = [(layer, source.load_float(layer.key)) for layer in layers]
            grams = {layer.key: calibration.gram(layer.key) for layer in layers}
            coding(loaded[1:2], TrellisSpec(3), grams)             # compiles
            a_weight = coding(loaded, TrellisSpec(3), grams) / sum(layer.numel for layer in layers)
            planning(loaded, grams, a_weight, calibration)
    searching(loaded[1:3], grams)
    wide_layer()
    backward()


def coding(loaded, spec, grams, calibrated: bool = False, **options) -> float:
    """CPU seconds to code these layers."""
    return timed(lambda: [encode_weight(weight, spec, splits=layer.splits,
                                        gram=grams[layer.key] if calibrated else None, **options)
                          for layer, weight in loaded])


def planning(loaded, grams, a_weight: float, calibration) -> None:
    """Print what costs of these layers take. a_weight: CPU seconds to code one."""
    costs = [Costs(candidates("trellis"), lambda *_: 1.0, c) for c in (None, None, calibration)]
    first, again, calibrated = (timed(lambda c=c: [c.of(layer, weight) for layer, weight in loaded]) for c in costs)
    factored = timed(lambda: [make_feedback(gram) for gram in grams.values()])
    print(f"PLANNING = {(first - again) / a_weight:.0e}, {again / len(loaded) / a_weight:.0e}")
    print(f"FACTORINGS['planning'] = {(calibrated - again) / factored:.1f}", flush=True)


def searching(loaded, grams) -> None:
    """Print what additive and product codes take of these layers."""
    for kind in (AdditiveSpec, ProductSpec):
        free, normal = (coding(loaded, kind(2), grams, calibrated) for calibrated in (False, True))
        print(f"FEEDBACK['{kind(2).kind}'] = {normal / free:.1f}", flush=True)
        if kind is AdditiveSpec:
            spent = {name: coding(loaded, kind(2), grams, True, effort=name) / normal for name in ("fast", "best")}
            print(f"SEARCH = {{'fast': {spent['fast']:.2f}, 'normal': 1.0, 'best': {spent['best']:.1f}}}", flush=True)


def wide_layer() -> None:
    """Print what a calibration costs a linear layer of SDXL's width, beside two factorings (FACTORINGS['coding'])."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDTH, WIDTH, generator=generator)
    inputs = torch.randn(2, 3 * WIDTH, WIDTH, generator=generator) @ torch.randn(WIDTH, WIDTH, generator=generator)
    grams = [(x.t() @ x / len(x))[None] for x in inputs]
    gram = Gram(grams[0], 3 * WIDTH, grams[1], 3 * WIDTH)
    plain, factored, calibrated = (timed(work) for work in (
        lambda: encode_weight(weight, TrellisSpec(3)), lambda: make_feedback(gram),
        lambda: encode_weight(weight, TrellisSpec(3), gram=gram)))
    print(f"FEEDBACK_ELSE = {(calibrated - 2 * factored) / plain:.1f}    # coding {plain:.2f} s, factoring "
          f"{factored:.2f} s, calibrated {calibrated:.2f} s")


def backward() -> None:
    """Print what a call with a backward pass to all weights takes, in calls without gradients."""
    teacher = CheckpointTeacher(TESTBED, "cpu")
    teacher.open()
    settings = preset_settings("base", teacher.size(), steps=STEPS, timesteps=STEPS)
    calls = teacher.draw(Picture(0, "a red circle", 0, False), settings, Progress())
    plain = timed(lambda: [calls.ask(teacher.unet, i) for i in range(STEPS)])
    teacher.unet.requires_grad_(True)
    both = timed(lambda: [calls.ask(teacher.unet, i, gradients=True).square().mean().backward() for i in range(STEPS)])
    print(f"BACKWARD = {both / plain:.1f}")


if __name__ == "__main__":
    main()
