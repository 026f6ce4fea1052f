"""What calibration and planning bring on the testbed, measured as quality.py measures, and the claims made with it.

    python benchmarks/calibrated.py [--methods REGEX] [--prompts 32] [--steps 12] [--jobs 2]
                                    [--folder out/quality] [--out benchmarks/results]

The calibration: 48 captions of scenes that neither training nor the held-out prompts saw, 20 steps, guidance 3. Each
claim compares two students prompt by prompt: difference of the medians, 95 % paired bootstrap. Data-free students are
read from --folder, where quality.py kept them (or made here). Writes calibrated.csv; a stopped run goes on.
"""
from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from alias import RESULTS, ROOT, load_vqpack, machine
from quality_measure import Kept, Settings, captions, draw_teacher, measure
from quality_students import OURS_CODE, TESTBED, Coded, Row, count, layers, rows

load_vqpack()
from vqpack.vq_core import metrics  # noqa: E402
from vqpack.vq_core.calibration.run import calibrate  # noqa: E402
from vqpack.vq_core.container import Reader  # noqa: E402
from vqpack.vq_core.decompress import decode_tensor  # noqa: E402
from vqpack.vq_core.plan import Plan, make_plan  # noqa: E402
from vqpack.vq_core.planning.run import plan  # noqa: E402
from vqpack.vq_core.quantize import quantize  # noqa: E402

CODE = (*OURS_CODE, "vq_core/gram.py", "vq_core/calibration", "vq_core/planning", "benchmarks/calibrated.py")
PROMPTS, STEPS, TIMESTEPS, GUIDANCE = 48, 20, 8, 3.0       # of the calibration
SCENES = 5                                 # seed of its captions; training used 1, the prompts drawn here 11
PLANNED = (1, 1.5, 2, 2.5, 3)
TRELLIS = (1, 1.5, 2, 2.5, 3, 3.5, 4)
METRICS = ("latent_psnr", "noise_snr")
COLUMNS = ("claim", "ours", "ours_bits", "other", "other_bits", "metric", "low", "difference", "high", "verdict",
           "prompts", "machine", "commit")
FOUR_BIT = r"^(sdnq-uint4-.*|quanto-qint4.*|gguf-Q4_K|ours-palette-4|ours-uniform-4)$"
THREE_BIT = r"^(sdnq-uint3-.*|gguf-Q3_K|ours-palette-rows-3|ours-uniform-3)$"


@dataclass(frozen=True)
class Claim:
    """Student `ours` draws no worse than every student that `others` matches."""

    words: str
    ours: str
    others: str


CLAIMS = (
    Claim("calibrated 3 bits, every data-free 4-bit method", "trellis-3-calibrated", FOUR_BIT),
    Claim("calibrated 2 bits, every data-free 3-bit method", "trellis-2-calibrated", THREE_BIT),
    Claim("planned 2.0 bits, uniform GPTQ-4", "planned-2", "^gptq-4$"),
    Claim("planned 3.0 bits, planned GPTQ at 4.0", "planned-3", "^gptq-planned-4$"),
    Claim("AdaRound-4 with split shortcut, RTN-4", "adaround-4", "^ours-uniform-4$"),
    *(Claim(f"calibrated {bits:g} bits, the same data-free", f"trellis-{bits:g}-calibrated", f"^ours-trellis-{bits:g}$")
      for bits in TRELLIS))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="", help="regular expression of calibrated students")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "quality")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--part", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    kept = Kept(args.folder, Settings(args.prompts, args.steps))
    draw_teacher(kept)
    chosen = {row.name: row for row in calibrated_rows(args.folder) if re.search(args.methods, row.name)}
    todo = [row for row in chosen.values() if kept.load(row) is None]
    if args.part is not None:
        share, of = map(int, args.part.split("/"))
        todo = todo[share::of]
    elif len(todo) > 1 and args.jobs > 1:
        make_calibration(args.folder)
        _in_processes(args.jobs)
        todo = [row for row in todo if kept.load(row) is None]
    for row in todo:
        print(f"{row.name}: {measure(row, kept):.0f} s of a core", flush=True)
    if args.part is None:
        write(judge_all(chosen, kept), args.out / "calibrated.csv")
    return 0


def _in_processes(jobs: int) -> None:
    """The same command, each process every jobs-th student."""
    running = [subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--part", f"{share}/{jobs}"],
                                env={**os.environ, "OMP_NUM_THREADS": "1"}) for share in range(jobs)]
    for process in running:
        process.wait()


def calibrated_rows(folder: Path) -> list[Row]:
    """The students of this bench."""
    made = [(f"trellis-{bits:g}-calibrated", partial(make_plan, bits)) for bits in TRELLIS]
    made += [(f"planned-{bits:g}", partial(_planned, folder, bits, "trellis")) for bits in PLANNED]
    made += [(f"gptq-{bits}", partial(make_plan, bits, "uniform", rounding="gptq")) for bits in (2, 3, 4)]
    made += [("gptq-planned-4", partial(_planned, folder, 4, "uniform")),
             ("adaround-4", partial(make_plan, 4, "uniform", rounding="adaround"))]
    return [Row(name, "", partial(_code, folder, plan_of), CODE) for name, plan_of in made]


@cache
def make_calibration(folder: Path) -> Path:
    """The calibration file, made if it is not there."""
    prompts = captions(Settings(PROMPTS, STEPS, scenes=SCENES))
    return calibrate(TESTBED, folder / "testbed", prompts=list(prompts), steps=STEPS, timesteps=TIMESTEPS,
                     guidance=GUIDANCE, device="cpu").path


def _planned(folder: Path, bits: float, method: str) -> Plan:
    return plan(TESTBED, bits=bits, method=method, calibration=make_calibration(folder), text_encoder_bits=16,
                parts=("unet",)).plan


def _code(folder: Path, plan_of) -> Coded:
    """Through the product, as quality_students does it."""
    with tempfile.TemporaryDirectory() as work:
        result = quantize(TESTBED, Path(work) / "student.safetensors", plan=plan_of(), parts=("unet",), device="cpu",
                          calibration=make_calibration(folder))
        with Reader(result.path, mapped=False) as reader:
            weights = {layer.key: decode_tensor(reader, layer.key, torch.float32) for layer in layers()[0]}
    shares = count(dict.fromkeys(weights, 0), {layer.name for layer in result.layers})
    return Coded(weights, **{**shares, "bits_layers": result.bits["coded"], "bits_unet": result.bits["unet"]})


def judge_all(chosen: dict[str, Row], kept: Kept) -> list[dict]:
    """Rows of the table, for the claims whose students are all there."""
    found, here = [], machine()
    known = {**rows(), **chosen}
    for claim in CLAIMS:
        ours = kept.load(known[claim.ours]) if claim.ours in known else None
        for name in (name for name in known if re.search(claim.others, name)) if ours else ():
            other = kept.load(known[name])
            if other is not None:
                found += [{"claim": claim.words, "ours": claim.ours, "ours_bits": f"{ours['bits_unet']:.3f}",
                           "other": name, "other_bits": f"{other['bits_unet']:.3f}", "metric": metric,
                           **_gap(ours, other, metric), "prompts": kept.settings.prompts, "machine": here["cpu"],
                           "commit": here["commit"]} for metric in METRICS]
    return found


def _gap(ours: dict, other: dict, metric: str) -> dict:
    gap = metrics.paired_bootstrap(values(ours, metric), values(other, metric), "median")
    word = "undecided" if not gap.excludes_zero else "ahead" if gap.low > 0 else "behind"
    return {"low": f"{gap.low:.3f}", "difference": f"{gap.value:.3f}", "high": f"{gap.high:.3f}", "verdict": word}


def values(student: dict, metric: str) -> torch.Tensor:
    """One value a prompt, dB [n]: of the final latents, or the predictions' mean over steps and halves."""
    table = torch.tensor(student[metric], dtype=torch.float64)
    return table[-1] if metric == "latent_psnr" else table.mean((0, 1))


def write(lines: list[dict], path: Path) -> None:
    """The table as CSV, and printed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
    for line in lines:
        print(f"{line['claim']}: {line['ours']} ({line['ours_bits']}) against {line['other']} ({line['other_bits']}), "
              f"{line['metric']}: {line['verdict']} {line['difference']} ({line['low']} to {line['high']})")


if __name__ == "__main__":
    sys.exit(main())
