"""What tuning brings on the testbed: one file tuned in several ways, measured on prompts of neither kind.

    python benchmarks/tuning.py FILE [--ways REGEX] [--steps 60] [--prompts 48] [--measure 12]
                                [--folder out/tuning] [--out benchmarks/results]

FILE: a vqpack file of testbed/pipe. Learned from and judged by captions of scene(77, i), drawn with 12 steps, guidance
3, 64 x 64 pixels; measured on captions of scene(11, i) and other seeds, 20 steps: prediction SNR along the teacher's
own way and latent PSNR of the final latents, medians over prompts. Writes tuning.csv, a row a way. A stopped run goes
on: finished ways are read from --folder.
"""
from __future__ import annotations

import argparse
import csv
import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from statistics import median

from alias import RESULTS, ROOT, load_vqpack, machine

load_vqpack()
from vqpack.vq_core import trajectory  # noqa: E402
from vqpack.vq_core.inspection import inspect_file  # noqa: E402
from vqpack.vq_core.pipeline import load_pipeline, quiet  # noqa: E402
from vqpack.vq_core.source_reader import open_reader  # noqa: E402
from vqpack.vq_core.tuning.masters import Trained  # noqa: E402
from vqpack.vq_core.tuning.run import tune  # noqa: E402
from vqpack.vq_core.tuning.settings import Tuning  # noqa: E402

TESTBED = ROOT / "testbed" / "pipe"
COLUMNS = ("way", "steps", "bits_layers", "bits_unet", "held_out_db", "noise_snr", "latent_psnr", "cpu", "commit")
NOTHING = Trained(scales=False, books=False, tables="frozen", biases=False, norms=False, dense=False)
WAYS = {"scales": {"trained": replace(NOTHING, scales=True)},
        "scales, tables": {"trained": replace(NOTHING, scales=True, tables="shared")},
        "biases, norms": {"trained": replace(NOTHING, biases=True, norms=True)},
        "dense": {"trained": replace(NOTHING, dense=True)},
        "everything": {}, "everything, relative": {"weighting": "relative"}, "everything, guided": {"loss": "both"},
        "everything, mixed": {"trajectory": "mixed"}, "everything, columns": {"trained": Trained(columns=True)},
        "everything, rank 2": {"trained": Trained(rank=2)},
        "everything, flips": {"trained": Trained(codes=True), "flips": 0.01}}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--ways", default="", help="regular expression of those to be tuned")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--measure", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "tuning")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    quiet()
    args.folder.mkdir(parents=True, exist_ok=True)
    commit, prompts = machine(), tuple(dict.fromkeys(caption(77, i) for i in range(args.prompts)))
    teacher, rows = draw(load_pipeline(open_reader(TESTBED), configs=TESTBED), args.measure), []
    rows.append(measured("before", args.file, teacher, 0, 0.0, commit))
    for way, options in WAYS.items():
        if re.search(args.ways, way):
            path = args.folder / f"{args.file.stem}-{args.steps}-{re.sub('[ ,]+', '-', way)}.safetensors"
            if not path.is_file():
                tune(args.file, TESTBED, path, prompts=prompts, tuning=Tuning(steps=args.steps, **options),
                     size=(64, 64), steps=12, guidance=3.0, configs=TESTBED, device="cpu",
                     recordings=args.folder)
            told = inspect_file(path)["settings"]["tuning"]
            gain = decibels(told["before"] / told["after"])
            rows.append(measured(way, path, teacher, args.steps, gain, commit))
    with open(args.out / "tuning.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return 0


def measured(way: str, path: Path, teacher, steps: int, gain: float, commit: dict) -> dict:
    """One row, printed too."""
    pipe, bits = load_pipeline(path, configs=TESTBED), inspect_file(path)["bits"]
    said = trajectory.noise_along(pipe, teacher, batch=6, conditioning="teacher").snr().mean((0, 1))
    drawn = trajectory.latent_psnr_along(draw(pipe, len(teacher.prompts)), teacher)[-1]
    row = {"way": way, "steps": steps, "bits_layers": bits["coded"], "bits_unet": bits["unet"],
           "held_out_db": f"{gain:.2f}", "noise_snr": f"{median(said.tolist()):.2f}",
           "latent_psnr": f"{median(drawn.tolist()):.2f}", "cpu": commit["cpu"], "commit": commit["commit"]}
    print(f"{way}: {bits['unet']:.3f} bits, held-out {gain:+.2f} dB, prediction SNR {row['noise_snr']} dB, "
          f"latent PSNR {row['latent_psnr']} dB", flush=True)
    return row


def draw(pipe, count: int):
    """Pictures of other captions and seeds."""
    prompts = [caption(11, i) for i in range(count)]
    return trajectory.sample(pipe, prompts, range(1000, 1000 + count), steps=20, guidance=3.0, size=(64, 64), batch=6,
                             decode=False)


def decibels(ratio: float) -> float:
    from math import log10

    return 10 * log10(ratio)


def caption(seed: int, index: int) -> str:
    """Of a scene that training did not see."""
    spec = importlib.util.spec_from_file_location("testbed_scenes", ROOT / "testbed" / "scenes.py")
    scenes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scenes)
    return scenes.scene(seed, index)[1]


if __name__ == "__main__":
    raise SystemExit(main())
