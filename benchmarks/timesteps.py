"""At which noise levels a calibration must look, on the testbed: early, late or single steps against all of them.

    python benchmarks/timesteps.py [--only base,few] [--bits 2] [--pictures 32] [--judged 32] [--captures REGEX]
                                   [--method trellis] [--folder out/timesteps] [--out benchmarks/results]

base  24 steps, guidance 3. Captures of BASE: 8 calls a picture of 4 input vectors each, from all of the trajectory, its
      noisiest or its last third; or a single call of 32 vectors, at the first step, in the middle or at the last one.
      So many are there at every resolution; time embeddings alone have fewer in a single call (two), text states are
      the same for all. Judged on other captions and seeds, 12 steps.
few   a teacher of 4 steps without guidance (LCM's sampler) calibrated with just that (`--preset lcm --steps 4 --cfg 1`)
      and with the base preset (25 steps, guidance 5), 4 calls of 8 vectors a picture each. Judged on its own way.

Prediction SNR along the teacher's way and latent PSNR at its end, medians in dB, and what the first capture has more
than each other one, paired bootstrap. Writes timesteps.csv; what was made is kept in --folder: a stopped run goes on.
"""
from __future__ import annotations

import argparse
import re
import statistics
import sys
from pathlib import Path

import torch
from alias import RESULTS, ROOT, load_vqpack, machine
from calibrated_students import SCENES
from testbed_bench import Way, add_rows, calibration_of, coded, judged, scene_captions

load_vqpack()
from vqpack.vq_core import metrics  # noqa: E402
from vqpack.vq_core.plan import make_plan  # noqa: E402

BASE = {"steps": 24, "guidance": 3.0}
MANY, ONE = {"timesteps": 8, "tokens": 4}, {"timesteps": 1, "tokens": 32}
LEVELS = {"first": (925.0, 1000.0), "middle": (480.0, 520.0), "last": (0.0, 40.0)}             # one step of 24 each
CAPTURES = {
    "base": {"all": {**BASE, **MANY}, "early third": {**BASE, **MANY, "window": (655.0, 1000.0)},
             "late third": {**BASE, **MANY, "window": (0.0, 333.0)},
             **{f"{name} step": {**BASE, **ONE, "window": window} for name, window in LEVELS.items()}},
    "few": {"lcm, 4 steps": {"preset": "lcm", "steps": 4, "guidance": 1.0, "timesteps": 4, "tokens": 8},
            "base, 25 steps": {"preset": "base", "timesteps": 4, "tokens": 8}},
}
WAYS = {"base": {}, "few": {"steps": 4, "guidance": 1.0, "sampler": "lcm"}}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CAPTURES))
    parser.add_argument("--bits", default="2")
    parser.add_argument("--pictures", type=int, default=32, help="of each calibration")
    parser.add_argument("--judged", type=int, default=32, help="pictures drawn to judge")
    parser.add_argument("--captures", default="", help="regular expression")
    parser.add_argument("--method", default="trellis")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "timesteps")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    here = machine()
    for teacher in args.only.split(","):
        for bits in map(float, args.bits.split(",")):
            rows = compared(teacher, bits, values(args, teacher, bits))
            add_rows(args.out / "timesteps.csv", [{**row, "machine": here["cpu"], "commit": here["commit"]}
                                                  for row in rows], ("teacher", "bits", "capture", "metric"))
    return 0


def values(args, teacher: str, bits: float) -> dict[str, dict[str, list[float]]]:
    """Capture -> metric -> one value a prompt."""
    found, way = {}, Way(args.judged, **WAYS[teacher])
    for name, settings in CAPTURES[teacher].items():
        if re.search(args.captures, name):
            plain = re.sub(r"\W+", "-", f"{teacher}-{name}")
            calibration = calibration_of(args.folder, plain, scene_captions(args.pictures, SCENES), sensitivity=False,
                                         **settings)
            plan = make_plan(bits, args.method, text_encoder_bits=16)
            weights = coded(args.folder, f"{plain}-{bits:g}", plan, calibration)[1]
            found[name] = judged(args.folder, f"{plain}-{bits:g}", weights, way)
    return found


def compared(teacher: str, bits: float, found: dict[str, dict[str, list[float]]]) -> list[dict]:
    """One row a capture and metric: its median, and what the first capture has more."""
    rows, first = [], next(iter(found.values()))
    for name, values_ in found.items():
        for metric, mine in values_.items():
            gap = metrics.paired_bootstrap(first[metric], mine, "median")
            rows.append({"teacher": teacher, "bits": f"{bits:g}", "capture": name, "metric": metric,
                         "median": f"{statistics.median(mine):.3f}", "low": f"{gap.low:.3f}",
                         "first_has_more": f"{gap.value:.3f}", "high": f"{gap.high:.3f}", "pictures": gap.count})
            print("{teacher}, {bits} bits, {capture}: {metric} {median}, the first has {first_has_more} more ({low} to "
                  "{high})".format(**rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
