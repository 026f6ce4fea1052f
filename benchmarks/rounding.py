"""Roundings of uniform codes on the testbed: to the nearest, learned layer by layer, learned block by block.

    python benchmarks/rounding.py [--bits 4,3] [--rows nearest,adaround,sequential,block] [--pictures 48] [--judged 32]
                                  [--folder out/rounding] [--out benchmarks/results]

nearest     without a calibration
adaround    learned layer by layer through the calibration's grams (AdaRound)
sequential  the same with --sequential: each layer for what it gets from those coded before
block       --rounding block --sequential: learned together for each residual and transformer block (Q-Diffusion)

Captions of scenes the testbed was not trained on calibrate; others, 12 steps with guidance 3, judge: prediction SNR
along the teacher's way and latent PSNR at its end, medians in dB with 95 % intervals, and what a row has more than each
earlier one at the same bits, paired bootstrap. Writes rounding.csv; what was made is kept in --folder: a stopped run
goes on. One thread; 48 pictures and both rates take some hours.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from alias import RESULTS, ROOT, load_vqpack, machine
from calibrated_students import GUIDANCE, SCENES, STEPS, TIMESTEPS
from testbed_bench import Way, calibration_of, coded, judged, scene_captions, write_csv

load_vqpack()
from vqpack.vq_core import metrics  # noqa: E402
from vqpack.vq_core.plan import make_plan  # noqa: E402

ROWS = {"nearest": ("nearest", False), "adaround": ("adaround", False), "sequential": ("adaround", True),
        "block": ("block", True)}          # name -> (rounding, block by block)
METRICS = ("noise_snr", "latent_psnr")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", default="4,3")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--pictures", type=int, default=48, help="of the calibration")
    parser.add_argument("--judged", type=int, default=Way().prompts, help="pictures drawn to judge")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "rounding")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines, here = [], machine()
    for bits in map(int, args.bits.split(",")):
        found = {}
        for name in args.rows.split(","):
            found[name] = student(args, name, bits)
            lines += compared(bits, name, found)
            write_csv(args.out / "rounding.csv", [{**line, "calibrated": args.pictures, "machine": here["cpu"],
                                                   "commit": here["commit"]} for line in lines])
    return 0


def student(args, name: str, bits: int) -> dict:
    """Stored bits of the coded layers and one value a prompt of each metric."""
    rounding, sequential = ROWS[name]
    prompts, calibration = scene_captions(args.pictures, SCENES), None
    if rounding != "nearest":
        calibration = calibration_of(args.folder, "testbed", prompts, steps=STEPS, timesteps=TIMESTEPS,
                                     guidance=GUIDANCE, sensitivity=False)
    plan = make_plan(bits, "uniform", text_encoder_bits=16, rounding=rounding)
    result, weights = coded(args.folder, f"{name}-{bits}", plan, calibration, prompts if sequential else None)
    if result.blocks():
        print(f"{name} {bits}: {result.blocks_in_words()}", flush=True)
    return {"bits": result.bits["coded"], **judged(args.folder, f"{name}-{bits}", weights, Way(args.judged))}


def compared(bits: int, name: str, found: dict[str, dict]) -> list[dict]:
    """Lines of the last row: its own medians, and what it has more than each earlier one."""
    lines, mine = [], found[name]
    for metric in METRICS:
        intervals = {"": metrics.bootstrap(mine[metric], "median")}
        intervals |= {other: metrics.paired_bootstrap(mine[metric], theirs[metric], "median")
                      for other, theirs in found.items() if other != name}
        lines += [_line(bits, name, mine, over, metric, interval) for over, interval in intervals.items()]
    for line in lines:
        print("{rounding} {bits} ({stored_bits} stored), over '{over}': {metric} {value} ({low} to {high})".format(
            **line), flush=True)
    return lines


def _line(bits: int, name: str, mine: dict, over: str, metric: str, interval) -> dict:
    return {"bits": bits, "stored_bits": f"{mine['bits']:.3f}", "rounding": name, "over": over, "metric": metric,
            "low": f"{interval.low:.3f}", "value": f"{interval.value:.3f}", "high": f"{interval.high:.3f}",
            "pictures": interval.count}


if __name__ == "__main__":
    sys.exit(main())
