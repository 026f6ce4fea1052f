"""Quality over time on the testbed: what each effort of `quantize` takes, and what it brings to pictures.

    python benchmarks/effort.py [--bits 2,3] [--rows fast,planned,balanced,sequential,untuned,best] [--judged 32]
                                [--folder out/effort] [--out benchmarks/results] [--plot docs/images]

fast        --effort fast: without data
planned     --effort balanced without prompts: rates by a rule of thumb
balanced    --effort balanced: calibrated with 32 captions, preset base (25 steps, guidance 5)
sequential  the same with --sequential: block by block
best        --effort best: calibrated with 128 captions, tuned for 300 steps with what the original says in 96 of them
untuned     the same as it was coded, before it was tuned

Captions of scenes the testbed was not trained on; others, 12 steps with guidance 3, are drawn to judge: prediction SNR
along the teacher's way and latent PSNR at its end, medians in dB with 95 % intervals, and what a row has more than
`fast` at the same bits, paired bootstrap. Time is processor seconds, one thread; a calibration's is counted in each row
that uses it. Writes effort.json, and effort.png where matplotlib is installed; what was made is kept in --folder: a
stopped run goes on, and rows of earlier runs with the same settings stay.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from alias import RESULTS, ROOT, load_vqpack, machine
from calibrated_students import SCENES
from quality_students import TESTBED
from testbed_bench import CAPTURE_CODE, CODE, Way, digest, judged, scene_captions

load_vqpack()
from vqpack.vq_core import metrics  # noqa: E402
from vqpack.vq_core.arch import UNET_PREFIX  # noqa: E402
from vqpack.vq_core.calibration.run import calibrate  # noqa: E402
from vqpack.vq_core.container import Reader  # noqa: E402
from vqpack.vq_core.decompress import decode_tensor  # noqa: E402
from vqpack.vq_core.effort import AT, quantize_with_effort  # noqa: E402
from vqpack.vq_core.progress import Progress  # noqa: E402

ROWS = {"fast": ("fast", False), "planned": ("balanced", False), "balanced": ("balanced", True),
        "sequential": ("balanced", True), "untuned": ("best", True), "best": ("best", True)}
# name -> (level, whether it is calibrated)
DRAWN = ("sequential", "best")             # rows that draw the prompts again
METRICS = {"noise_snr": "prediction SNR, dB", "latent_psnr": "latent PSNR, dB"}
COLORS = {2.0: "#1d4ed8", 3.0: "#c1121f"}


class Stages(Progress):
    """Processor seconds of each stage; numbers at the end of a stage's name are left out."""

    def __init__(self):
        super().__init__()
        self.seconds: dict[str, float] = {}
        self._stage, self._last = "other", time.process_time()

    def start(self, stage: str, *args, **named) -> None:
        """Count what went before."""
        self.stop()
        self._stage = stage.split(" block")[0].split(",")[0]
        super().start(stage, *args, **named)

    def stop(self) -> None:
        """Count the stage that runs."""
        now = time.process_time()
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._last
        self._stage, self._last = "other", now


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", default="2,3")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--judged", type=int, default=Way().prompts, help="pictures drawn to judge")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "effort")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    path, way = args.out / "effort.json", Way(args.judged)
    for name in args.rows.split(","):
        for bits in map(float, args.bits.split(",")):
            made = row(args.folder, name, bits)
            made |= judged(args.folder, "judged", decoded(args.folder / made["file"]), way)
            rows = with_row(path, made, way)
            show(made, next((r for r in rows if (r["name"], r["bits"]) == ("fast", bits)), None))
    if find_spec("matplotlib") is not None:
        plot(json.loads(path.read_text())["rows"], args.plot / "effort.png")
    return 0


def row(folder: Path, name: str, bits: float) -> dict:
    """One file made as `quantize --effort` makes it, with the time it took; kept."""
    level, drawn = ROWS[name]
    code = (*CODE, "vq_core/tuning") if name == "best" else CODE
    stem = f"{name}-{bits:g}-{digest(code, asdict(AT[level]))}"
    kept = folder / f"{stem}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    made = calibration_of(folder, level) if drawn else {"file": None, "seconds": {}}
    stages, said = Stages(), []
    with TemporaryDirectory(dir=folder) as own:            # a stopped row begins again, or its time would be too short
        result = quantize_with_effort(
            TESTBED, Path(own) / stem, effort=level, bits=bits, calibration=made["file"] and folder / made["file"],
            prompts=prompts_of(level) if name in DRAWN else None, sequential=name == "sequential",
            parts=("unet",), text_encoder_bits=16, device="cpu", progress=stages, tell=said.append)
        os.replace(result.path, folder / result.path.name)
    stages.stop()
    seconds = {f"calibration, {stage}": spent for stage, spent in made["seconds"].items()} | stages.seconds
    found = {"name": name, "bits": bits, "file": result.path.name, "said": said,
             "pictures": AT[level].pictures if drawn else 0, "stored_bits": result.bits["coded"],
             "unet_bits": result.bits["unet"], "seconds": {stage: round(spent, 1) for stage, spent in seconds.items()},
             "total_seconds": round(sum(seconds.values()), 1)}
    kept.write_text(json.dumps(found))
    return found


def prompts_of(level: str) -> list[str]:
    """Captions that a level is calibrated with."""
    return list(scene_captions(AT[level].pictures, SCENES))


def calibration_of(folder: Path, level: str) -> dict:
    """A level's calibration, as quantize_with_effort would make it -> name and seconds by stage; kept."""
    stem = f"{level}-{digest(CAPTURE_CODE, prompts_of(level))}"
    kept = folder / f"{stem}-calibration.json"
    if not kept.is_file():
        stages = Stages()
        with TemporaryDirectory(dir=folder) as own:
            made = calibrate(TESTBED, Path(own) / stem, prompts=prompts_of(level), device="cpu", progress=stages)
            os.replace(made.path, folder / made.path.name)
        stages.stop()
        kept.write_text(json.dumps({"file": made.path.name, "seconds": stages.seconds}))
    return json.loads(kept.read_text())


def decoded(path: Path) -> dict[str, torch.Tensor]:
    """LDM key -> float32 weight of everything in the UNet: tuning changes dense tensors, too."""
    with Reader(path, mapped=False) as reader:
        return {key: decode_tensor(reader, key, torch.float32) for key in reader.keys() if key.startswith(UNET_PREFIX)}


def with_row(path: Path, made: dict, way: Way) -> list[dict]:
    """Put a row into the result file, in place of its like -> all rows that were judged alike"""
    settings = {"judged": asdict(way), "code": digest(CODE, {level: asdict(actions) for level, actions in AT.items()})}
    found = json.loads(path.read_text()) if path.is_file() else {}
    rows = found["rows"] if found.get("settings") == settings else []
    rows = [r for r in rows if (r["name"], r["bits"]) != (made["name"], made["bits"])] + [made]
    rows.sort(key=lambda r: (r["bits"], list(ROWS).index(r["name"])))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "machine": machine(), "rows": rows}, indent=1) + "\n")
    return rows


def show(made: dict, fast: dict | None) -> None:
    """Print one row."""
    told = []
    for metric, title in METRICS.items():
        own = metrics.bootstrap(made[metric], "median")
        text = f"{title.split(',')[0]} {own.value:.1f} ({own.low:.1f} to {own.high:.1f})"
        if fast is not None and fast is not made:
            more = metrics.paired_bootstrap(made[metric], fast[metric], "median")
            text += f", {more.value:+.1f} ({more.low:+.1f} to {more.high:+.1f}) over fast"
        told.append(text)
    print(f"{made['name']} {made['bits']:g}: {made['total_seconds']:.0f} s, {made['stored_bits']:.3f} bits; "
          f"{'; '.join(told)}", flush=True)


def plot(rows: list[dict], path: Path) -> None:
    """Medians over processor time, one line a rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(METRICS), figsize=(9, 3.6), layout="constrained")
    for axis, (metric, title) in zip(axes, METRICS.items()):
        for bits in sorted({r["bits"] for r in rows}):
            line = [r for r in rows if r["bits"] == bits]
            own = [metrics.bootstrap(r[metric], "median") for r in line]
            x, y = [r["total_seconds"] for r in line], [i.value for i in own]
            ends = [[i.value - i.low for i in own], [i.high - i.value for i in own]]
            axis.errorbar(x, y, ends, fmt="o", capsize=2, color=COLORS.get(bits), label=f"{bits:g} bits")
            for r, left, up in zip(line, x, y):
                axis.annotate(r["name"], (left, up), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axis.set(xscale="log", xlabel="processor seconds, one thread", ylabel=title)
        axis.grid(color="#e8e8e8")
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
