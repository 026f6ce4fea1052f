"""What calibration and planning bring on the testbed, measured as quality.py measures, and the claims made with it.

    python benchmarks/calibrated.py [--methods REGEX] [--prompts 32] [--steps 12] [--jobs 2]
                                    [--folder out/quality] [--out benchmarks/results]

The calibration: 48 captions of scenes that neither training nor the held-out prompts saw, 20 steps, guidance 3. Each
claim compares two students prompt by prompt: difference of the medians (attributes: means, as a share of the teacher's
excess over chance), 95 % paired bootstrap; methods that code less than 95 % of the weights are left out. Data-free
students are read from --folder, where quality.py kept them. Writes calibrated.csv (the claims) and
calibrated_students.csv (each student's own numbers); a stopped run goes on.
"""
from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from alias import RESULTS, ROOT, load_vqpack, machine
from calibrated_students import TRELLIS, calibrated_rows, make_calibration
from quality_measure import Kept, Settings, draw_teacher, eight_bits, measure
from quality_report import attribute_scores, per_prompt
from quality_students import Row, rows
from quality_verdict import LEAST_SHARE

load_vqpack()
from vqpack.vq_core import metrics  # noqa: E402

METRICS = ("latent_psnr", "noise_snr", "attributes")
CLAIM_COLUMNS = ("claim", "ours", "ours_bits", "other", "other_bits", "metric", "low", "difference", "high", "verdict",
                 "prompts", "machine", "commit")                                    # bits: stored, of the whole UNet
STUDENT_COLUMNS = ("student", "bits_layers", "bits_unet", "coded_share", "metric", "statistic", "low", "value", "high",
                   "prompts", "machine", "commit")
FOUR_BIT = (r"^(sdnq-uint4.*|hqq-4bit.*|bnb-nf4.*|torchao-int4.*|quanto-qint4.*|kitchen-w4a8.*|gguf-Q4_K|"
            r"ours-palette(-rows)?-4|ours-uniform-4)$")
THREE_BIT = r"^(sdnq-uint3.*|hqq-3bit.*|gguf-Q3_K|ours-palette-rows-3|ours-uniform-3)$"


@dataclass(frozen=True)
class Claim:
    """Student `ours` draws no worse than every student that `others` matches."""

    words: str
    ours: str
    others: str


CLAIMS = (
    Claim("calibrated 3 bits, every data-free 4-bit method", "trellis-3-calibrated", FOUR_BIT),
    Claim("calibrated 2 bits, every data-free 3-bit method", "trellis-2-calibrated", THREE_BIT),
    Claim("planned 3 bits, every data-free 4-bit method", "planned-3", FOUR_BIT),
    Claim("planned 2 bits, every data-free 3-bit method", "planned-2", THREE_BIT),
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
        students = load_students(chosen, kept)
        write(claim_lines(students), CLAIM_COLUMNS, args.out / "calibrated.csv")
        write(student_lines(students), STUDENT_COLUMNS, args.out / "calibrated_students.csv")
        tell(students)
    return 0


def _in_processes(jobs: int) -> None:
    """The same command, each process every jobs-th student."""
    running = [subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--part", f"{share}/{jobs}"],
                                env={**os.environ, "OMP_NUM_THREADS": "1"}) for share in range(jobs)]
    for process in running:
        process.wait()


def load_students(chosen: dict[str, Row], kept: Kept) -> dict[str, dict]:
    """What was kept of the chosen students and of all that a claim names; "values": metric -> (statistic, values)."""
    known = {**rows(), **chosen}
    wanted = [name for name in known if name in chosen or any(re.search(c.others, name) or c.ours == name
                                                              for c in CLAIMS)]
    found = {name: one for name in wanted if (one := kept.load(known[name])) is not None}
    teacher = eight_bits(draw_teacher(kept).images)
    scores, why = attribute_scores({name: one["pictures"] for name, one in found.items()}, teacher, kept.settings)
    if "attributes" in why:
        print(f"attributes: {why['attributes']}")
    for name, one in found.items():
        own = {**per_prompt(one), **scores.get(name, {})}
        one["values"] = {metric: own[metric] for metric in METRICS if metric in own}
    return found


def claim_lines(students: dict[str, dict]) -> list[dict]:
    """Rows of the claims whose students are all there."""
    found, here = [], machine()
    for claim in CLAIMS:
        ours = students.get(claim.ours)
        others = [name for name in students if re.search(claim.others, name)] if ours else []
        for name in (name for name in others if students[name]["share"] >= LEAST_SHARE):
            other = students[name]
            found += [{"claim": claim.words, "ours": claim.ours, "ours_bits": f"{ours['bits_unet']:.3f}",
                       "other": name, "other_bits": f"{other['bits_unet']:.3f}", "metric": metric,
                       **gap(ours["values"][metric], other["values"][metric]), "machine": here["cpu"],
                       "commit": here["commit"]} for metric in ours["values"] if metric in other["values"]]
    return found


def gap(ours: tuple, other: tuple) -> dict:
    """Two students' (statistic, values [n]) -> the difference, its interval and a verdict"""
    found = metrics.paired_bootstrap(ours[1], other[1], ours[0])
    word = "undecided" if not found.excludes_zero else "ahead" if found.low > 0 else "behind"
    return {"low": f"{found.low:.3f}", "difference": f"{found.value:.3f}", "high": f"{found.high:.3f}",
            "verdict": word, "prompts": found.count}


def student_lines(students: dict[str, dict]) -> list[dict]:
    """Rows of every student's own numbers."""
    found, here = [], machine()
    for name, one in students.items():
        for metric, (statistic, values) in one["values"].items():
            own = metrics.bootstrap(values, statistic)
            found.append({"student": name, "bits_layers": f"{one['bits_layers']:.3f}",
                          "bits_unet": f"{one['bits_unet']:.3f}", "coded_share": f"{one['share']:.3f}",
                          "metric": metric, "statistic": statistic, "low": f"{own.low:.3f}",
                          "value": f"{own.value:.3f}", "high": f"{own.high:.3f}", "prompts": own.count,
                          "machine": here["cpu"], "commit": here["commit"]})
    return found


def write(lines: list[dict], columns: tuple[str, ...], path: Path) -> None:
    """A table as CSV; complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".csv.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
    os.replace(part, path)


def tell(students: dict[str, dict]) -> None:
    """Both tables in words."""
    for line in student_lines(students):
        print("{student} ({bits_layers} bits, UNet {bits_unet}): {metric} {value} ({low} to {high})".format(**line))
    for line in claim_lines(students):
        print("{claim}: {ours} ({ours_bits}) against {other} ({other_bits}), {metric}: {verdict} {difference} "
              "({low} to {high})".format(**line))


if __name__ == "__main__":
    sys.exit(main())
