"""Whether a calibration serves prompts, seeds and samples that it has not seen, on the testbed and on a wide layer.

    python benchmarks/generalization.py [--only layers,pictures,toy] [--bits 2,3] [--prompts 48] [--judged 32]
                                        [--students REGEX] [--folder out/generalization] [--out benchmarks/results]

layers    the testbed coded with each of CALIBRATIONS and without: squared error of the layers' outputs over their
          square, for the inputs of the captions it was calibrated with, of the same captions from other seeds, and of
          other captions from other seeds; ratios are geometric means over the layers
pictures  prediction SNR along the teacher's way and latent PSNR, for other captions and seeds and (prediction SNR) for
          the calibration's own
toy       a layer of 1280 x 640 with correlated inputs (correlated.py), of which 64, 160 and 320 are known, a quarter of
          them held out: error on 8192 others over the error without calibration, at most 1 if few samples do no harm

Writes generalization_layers.csv, generalization_pictures.csv and generalization_toy.csv, rows of other students and
numbers of pictures stay; what was made is kept in --folder, so a stopped run goes on. One thread.
"""
from __future__ import annotations

import argparse
import re
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch
from alias import RESULTS, ROOT, load_vqpack, machine
from calibrated_students import GUIDANCE, SCENES, STEPS, TIMESTEPS
from correlated import gram, inputs, weights
from layer_error import HELD_OUT, measure
from testbed_bench import (
    Way,
    add_rows,
    calibration_of,
    coded,
    geometric_mean,
    judged,
    layer_errors,
    random_prompts,
    scene_captions,
)

load_vqpack()
from vqpack.vq_core import metrics  # noqa: E402
from vqpack.vq_core.gram import Gram  # noqa: E402
from vqpack.vq_core.plan import make_plan  # noqa: E402

FEW = (64, 160, 320)                       # input vectors of a layer; the testbed's spatial layers see 8 a picture
OTHER_SEED = 1000                          # of pictures that nothing was calibrated with
FREE = "none"
CALIBRATIONS = ("captions", "random", *(f"few-{count}" for count in FEW))
TRUTHS = ("captions", "seeds", "others")
TOY_CODES = ("trellis", "palette", "gptq", "additive", "product")
PARTS = ("layers", "pictures", "toy")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--bits", default="2,3")
    parser.add_argument("--prompts", type=int, default=48, help="pictures of a calibration")
    parser.add_argument("--judged", type=int, default=32, help="pictures drawn to judge")
    parser.add_argument("--method", default="trellis", help="of the testbed's layers")
    parser.add_argument("--students", default="", help="regular expression: none, captions, random, few-64 ...")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "generalization")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    args.bits = [float(bits) for bits in args.bits.split(",")]
    torch.set_num_threads(1)
    for part in args.only.split(","):
        rows = {"layers": layer_rows, "pictures": picture_rows, "toy": toy_rows}[part](args)
        here = machine()
        made_with, key = {"calibrated_with": args.prompts}, ("calibrated_with", "student", "bits")
        if part == "toy":
            made_with, key = {}, ("layer", "code", "bits", "samples")
        add_rows(args.out / f"generalization_{part}.csv",
                 [{**made_with, **row, "machine": here["cpu"], "commit": here["commit"]} for row in rows], key)
    return 0


def make_calibration(args, name: str) -> Path:
    """One of CALIBRATIONS or TRUTHS."""
    given = {"steps": STEPS, "timesteps": TIMESTEPS, "guidance": GUIDANCE, "sensitivity": False}
    prompts = scene_captions(args.prompts, SCENES)
    if name == "random":
        prompts = random_prompts(args.prompts, SCENES)
    elif name == "seeds":
        given["seed"] = OTHER_SEED
    elif name == "others":
        prompts, given["seed"] = scene_captions(args.prompts, Way().scenes), OTHER_SEED
    elif name.startswith("few"):
        prompts, given["tokens"] = scene_captions(int(name.split("-")[1]) // TIMESTEPS, SCENES), 1
    return calibration_of(args.folder, name, prompts, **given)


def students(args):
    """(name, bits, decoded weights) of every student asked for."""
    for bits in args.bits:
        for name in (FREE, *CALIBRATIONS):
            if re.search(args.students, name):
                calibration = None if name == FREE else make_calibration(args, name)
                plan = make_plan(bits, args.method, text_encoder_bits=16)
                yield name, bits, coded(args.folder, f"{name}-{bits:g}", plan, calibration)[1]


def layer_rows(args) -> list[dict]:
    """One row a student and truth."""
    rows, errors = [], {}
    for name, bits, weights_ in students(args):
        for truth in TRUTHS:
            errors[name, bits, truth] = layer_errors(weights_, make_calibration(args, truth))
            rows.append(compare_layers(name, bits, truth, errors))
            print("{bits:g} bits, {student}, inputs of {inputs}: error {error}, over without calibration "
                  "{over_free} (worst layer {worst_over_free}, {layers_worse} of {layers} worse), over its own inputs "
                  "{over_captions}".format(**rows[-1]), flush=True)
    return rows


def compare_layers(name: str, bits: float, truth: str, errors: dict[tuple, dict[str, float]]) -> dict:
    """A row. errors: (student, bits, truth) -> layer -> error; ratios are left out where there is nothing to compare.

    over_free: against the student without calibration for the same inputs; over_captions: against its own error for
    the inputs of the calibration's captions.
    """
    mine = errors[name, bits, truth]
    free, own = errors.get((FREE, bits, truth)), errors.get((name, bits, "captions"))
    against = [] if free is None else [mine[key] / free[key] for key in mine]
    beyond = [] if own is None else [mine[key] / own[key] for key in mine]
    return {"student": name, "bits": bits, "inputs": truth, "error": f"{geometric_mean(list(mine.values())):.6f}",
            "over_free": f"{geometric_mean(against):.4f}" if against else "",
            "worst_over_free": f"{max(against):.4f}" if against else "",
            "layers_worse": sum(ratio > 1 for ratio in against), "layers": len(mine),
            "over_captions": f"{geometric_mean(beyond):.4f}" if beyond else "",
            "worst_over_captions": f"{max(beyond):.4f}" if beyond else ""}


def picture_rows(args) -> list[dict]:
    """One row a student, set of prompts and metric; differences are paired with the student without calibration."""
    rows, free = [], {}
    others = Way(args.judged)
    ways = {"others": others, "captions": replace(others, scenes=SCENES, noise=0)}
    for name, bits, weights_ in students(args):
        for prompts, way in ways.items():
            if name not in (FREE, "captions") and prompts != "others":
                continue
            found = judged(args.folder, f"{name}-{bits:g}", weights_, way, draw=prompts == "others")
            for metric, values in found.items():
                if name == FREE:
                    free[bits, prompts, metric] = values
                rows.append({"student": name, "bits": bits, "prompts": prompts, "metric": metric,
                             "median": f"{statistics.median(values):.3f}", "pictures": len(values),
                             **_over_free(values, free.get((bits, prompts, metric)))})
                print("{bits:g} bits, {student}, {prompts}: {metric} {median}, over without calibration {difference} "
                      "({low} to {high})".format(**rows[-1]), flush=True)
    return rows


def _over_free(values: list[float], free: list[float] | None) -> dict:
    if free is None:
        return {"low": "", "difference": "", "high": ""}
    found = metrics.paired_bootstrap(values, free, "median")
    return {"low": f"{found.low:.3f}", "difference": f"{found.value:.3f}", "high": f"{found.high:.3f}"}


def toy_rows(args, rows: int = 1280, columns: int = 640) -> list[dict]:
    """One row a code, rate and number of samples."""
    weight, truth = weights(rows, columns), gram(inputs(columns, HELD_OUT, 9))
    found = []
    for code in TOY_CODES:
        for bits in args.bits:
            for count in FEW:
                result = measure(weight, f"{code} {bits:g}", few_samples(inputs(columns, count, 0)), truth)
                found.append({"layer": f"{rows}x{columns}", "code": code, "bits": bits, "samples": count,
                              "held_out": f"{result['held_out']:.6f}", "free": f"{result['free']:.6f}",
                              "over_free": f"{result['held_out'] / result['free']:.4f}"})
                print("{layer} {code} {bits:g} bits, {samples} samples: {held_out}, without {free}: {over_free}".format(
                    **found[-1]), flush=True)
    return found


def few_samples(x: torch.Tensor) -> Gram:
    """Input vectors [count, columns], the last quarter of them held out."""
    held = len(x) // 4
    return Gram(gram(x[:-held]), len(x) - held, gram(x[-held:]), held)


if __name__ == "__main__":
    sys.exit(main())
