"""What activations of few bits cost on the testbed, emulated: with coded weights, by grid, by groups, of scores.

    python benchmarks/activations.py [--only REGEX] [--prompts 32] [--steps 12] [--pictures 16]
                                     [--folder out/activations] [--out benchmarks/results]

Weights: the testbed's own fp16 (w16), the calibrated 3-bit trellis (w3), the AQ thesis' additive codes (w4, w2, w1.5;
w1.5 is below 1.5 bits at SDXL's size, books weigh more here). Weights are calibrated as calibrated.py does it, their
activations with --pictures (DGQ's number) of the same scenes, 8 of 20 steps each, at the coded model itself. a16: the
same weights, activations as they are.

Prediction SNR along the teacher's way and latent PSNR at its end (medians in dB), attributes (mean share of what the
teacher has more than chance), on the held-out captions of quality.py. Writes activations.csv and, for PAIRS, what the
first has more than the second, paired bootstrap, activations_pairs.csv; rows of other prompts and steps stay. What was
made and measured is kept in --folder: a stopped run goes on. One thread.
"""
from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from alias import RESULTS, ROOT, load_vqpack, machine
from calibrated_students import GUIDANCE, SCENES, STEPS, TIMESTEPS, make_calibration
from quality_measure import Settings, eight_bits, load_teacher
from quality_report import attribute_scores
from quality_students import TESTBED
from testbed_bench import BATCH, CODE, SIDE, Way, add_rows, coded, digest, publish, sample, scene_captions, teacher_way

load_vqpack()
from vqpack.vq_core import metrics, trajectory  # noqa: E402
from vqpack.vq_core.activations import (  # noqa: E402
    Activations,
    Ranges,
    calibrate_activations,
    load_ranges,
    make_activations,
    quantize_activations,
    save_ranges,
)
from vqpack.vq_core.activations.learn import learn_steps  # noqa: E402
from vqpack.vq_core.activations.specs import (  # noqa: E402
    TEXT_SPOTS,
    GroupSpec,
    KeepSpec,
    ScoreSpec,
    StaticSpec,
    TokenSpec,
)
from vqpack.vq_core.activations.thesis import thesis_plan  # noqa: E402
from vqpack.vq_core.calibration.calls import Calls, draw  # noqa: E402
from vqpack.vq_core.calibration.settings import pictures, preset_settings  # noqa: E402
from vqpack.vq_core.layers import VQConv2d, VQLinear  # noqa: E402
from vqpack.vq_core.pipeline import load_unet  # noqa: E402
from vqpack.vq_core.plan import make_plan  # noqa: E402

ACTIVATION_CODE = (*CODE, "vq_core/activations")
LESSONS = 12                               # pictures that step sizes are learned from; a quarter of them judges
STATISTICS = {"latent_psnr": "median", "noise_snr": "median", "attributes": "mean"}
PLANS = {"w3": partial(make_plan, 3, text_encoder_bits=16), "w4": partial(thesis_plan, "w4a8"),
         "w2": partial(thesis_plan, "w2a8"), "w1.5": partial(thesis_plan, "w1.5a8")}

# What int8 keeps at 16 bits, one by one: LDM keys.
SPOTS = {"embeddings": r"\.(time_embed|label_emb)\b", "time projections": r"\.emb_layers\b",
         "first convolution": r"\.input_blocks\.0\.0\b", "last convolution": r"\.out\.2\b", "text": TEXT_SPOTS}


def all_but(spot: str) -> tuple:
    """Rules that keep the other SPOTS."""
    return tuple((pattern, KeepSpec()) for name, pattern in SPOTS.items() if name != spot)


@dataclass(frozen=True)
class Row:
    """One student: its weights and what happens to its activations."""

    name: str
    weights: str                           # "w16" or a key of PLANS
    activations: Activations | None = None
    learned: bool = False                  # step sizes of its tables


def rows() -> list[Row]:
    """All students."""
    int8, int6, talsq8 = (make_activations(name) for name in ("int8", "int6", "talsq8"))
    found = [Row(f"{weights} a16", weights) for weights in PLANS]
    found += [Row("w3 a8", "w3", int8), Row("w3 a6", "w3", int6), Row("w16 a8", "w16", int8),
              Row("w16 a6", "w16", int6), Row("w3 a8 everywhere", "w3", Activations(TokenSpec(8), rules=())),
              Row("w3 a6 unrotated", "w3", Activations(TokenSpec(6, rotated=False)))]
    found += [Row(f"w3 a8, {spot} too", "w3", Activations(TokenSpec(8), rules=all_but(spot))) for spot in SPOTS]
    found += [Row(f"{weights} a8", weights, talsq8) for weights in ("w4", "w2", "w1.5")]
    inputs = {"a6 tensor": StaticSpec(6), "a6 tensor, 20 intervals": StaticSpec(6, 20), "a6 8 groups": GroupSpec(6),
              "a6 16 groups": GroupSpec(6, 16), "a6 8 groups, paper's axis": GroupSpec(6, axis="paper"),
              "a8 tensor": StaticSpec(8), "a8 8 groups": GroupSpec(8)}
    found += [Row(f"w16 {name}", "w16", Activations(spec)) for name, spec in inputs.items()]
    found += [Row(f"w16 scores {bits} {method}{'' if start else ', start too'}", "w16",
                  Activations(scores=ScoreSpec(method, bits, keep_start=start)))
              for bits in (8, 6) for method in ("row_uniform", "log2") for start in (True, False)]
    found += [Row(f"{weights} a6 tensor, learned", weights, Activations(StaticSpec(6)), True)
              for weights in ("w16", "w3")] + [Row("w3 a6 tensor", "w3", Activations(StaticSpec(6)))]
    return found + [Row(f"w16 {name}", "w16", make_activations(name)) for name in ("dgq6", "dgq6-paper", "qdiffusion8")]


PAIRS = [("w3 a8", "w3 a16"), *((f"w3 a8, {spot} too", "w3 a8") for spot in SPOTS),
         ("w3 a6", "w3 a16"), ("w3 a8 everywhere", "w3 a8"), ("w3 a6", "w3 a6 unrotated"),
         *((f"{weights} a8", f"{weights} a16") for weights in ("w4", "w2", "w1.5")),
         *((f"w16 {ours}", "w16 a6 tensor") for ours in ("a6 8 groups", "a6 16 groups", "a6 8 groups, paper's axis")),
         *((f"w16 {ours}", "w16 a6 tensor, 20 intervals") for ours in ("a6 8 groups", "a6 16 groups")),
         *((f"{weights} a6 tensor, learned", f"{weights} a6 tensor") for weights in ("w16", "w3")),
         ("w16 a8 8 groups", "w16 a8 tensor"), ("w16 dgq6", "w16 dgq6-paper"),
         *((f"w16 scores {bits} {method}", f"w16 scores {bits} {method}, start too")
           for bits in (8, 6) for method in ("row_uniform", "log2")),
         *((f"w16 scores {bits} row_uniform", f"w16 scores {bits} log2") for bits in (8, 6))]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression of students")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pictures", type=int, default=64, help="that activations are calibrated with")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "activations")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows():
        if re.search(args.only, row.name):
            values[row.name], lines = judged(row, measured(row, args), args)
            add_rows(args.out / "activations.csv", lines, ("student", "prompts", "steps", "metric"))
    pairs = [line for pair in PAIRS if set(pair) <= values.keys() for line in compared(*pair, values, args)]
    if pairs:
        add_rows(args.out / "activations_pairs.csv", pairs, ("first", "second", "prompts", "steps", "metric"))
    return 0


def measured(row: Row, args) -> dict:
    """Bits, seconds, values a prompt and pictures of one student; kept."""
    settings = row.activations and row.activations.to_json()
    asked = [row.name, row.weights, settings, args.prompts, args.steps, args.pictures]
    asked += [row.learned] if row.learned else []
    kept = args.folder / f"{re.sub(r'[^a-z0-9.]+', '-', row.name)}-{digest(ACTIVATION_CODE, json.dumps(asked))}.pt"
    if not kept.is_file():
        started = time.process_time()
        unet, bits = student(row.weights, args.folder)
        ranges = activation_ranges(row.weights, args) if needs_ranges(row.activations) else None
        attach = learned if row.learned else quantize_activations
        with attach(unet, row.activations, ranges):
            found = drawn(unet, args)
        publish(kept, partial(torch.save, {"bits": bits, "seconds": time.process_time() - started, **found}))
    return torch.load(kept, weights_only=True)


def learned(unet, settings: Activations, ranges: Ranges):
    """With step sizes learned from some of the pictures that the ranges are of."""
    return learn_steps(unet, settings, ranges, recorded(LESSONS))


def needs_ranges(settings: Activations | None) -> bool:
    """Whether any of its specs are tables."""
    return settings is not None and any(spec.kind in ("static", "groups") for spec in (
        settings.inputs, settings.attention, *(spec for _, spec in (*settings.rules, *settings.layers))))


@cache
def student(weights: str, folder: Path):
    """-> (UNet, its coded layers decoded once and still known as coded; stored bits a weight)"""
    if weights == "w16":
        return copy.deepcopy(load_teacher().unet), 16.0        # the teacher's own stays as it is
    result, _ = coded(folder, weights, PLANS[weights](), make_calibration(folder))
    unet = load_unet(result.path, torch.float32, "cpu", decode="per_call", configs=TESTBED)
    for module in unet.modules():
        if isinstance(module, VQLinear | VQConv2d):
            module.decoded = module.coded.decode(torch.float32)
    return unet, result.bits["unet"]


def activation_ranges(weights: str, args) -> Ranges:
    """Of a student, kept as a file."""
    name = f"{weights}-{digest(ACTIVATION_CODE, weights, args.pictures)}"
    path = args.folder / f"{name}.vqact.safetensors"
    if not path.is_file():
        save_ranges(path, calibrate_activations(student(weights, args.folder)[0], recorded(args.pictures)))
    return load_ranges(path)


@cache
def recorded(count: int) -> list[Calls]:
    """Calls of the testbed's own UNet."""
    settings = preset_settings("base", (SIDE, SIDE), steps=STEPS, timesteps=TIMESTEPS, guidance=GUIDANCE)
    pipe = load_teacher()
    return [draw(pipe, picture, settings) for picture in pictures(scene_captions(count, SCENES), settings)]


def drawn(unet, args) -> dict:
    """Values a prompt against the teacher's, pictures uint8 [n, height, width, 3]."""
    pipe, way = load_teacher(), Way(args.prompts, args.steps)
    teacher = teacher_way(args.folder, way)
    own, pipe.unet = pipe.unet, unet
    try:
        pair, ours = trajectory.noise_along(pipe, teacher, "teacher", BATCH), sample(pipe, way)
    finally:
        pipe.unet = own
    return {"noise_snr": pair.snr().mean((0, 1)), "latent_psnr": trajectory.latent_psnr_along(ours, teacher)[-1],
            "pictures": eight_bits(ours.images)}


def judged(row: Row, found: dict, args) -> tuple[dict[str, list[float]], list[dict]]:
    """Metric -> one value a prompt, and a student's rows of the table."""
    here, lines = machine(), []
    theirs = eight_bits(teacher_way(args.folder, Way(args.prompts, args.steps)).images)
    scores, _ = attribute_scores({row.name: found["pictures"]}, theirs, Settings(args.prompts, args.steps))
    values = {name: found[name] for name in ("latent_psnr", "noise_snr")}
    values |= {metric: own[1] for metric, own in scores.get(row.name, {}).items() if metric in STATISTICS}
    for metric, each in values.items():
        own = metrics.bootstrap(each, STATISTICS[metric])
        lines.append({"student": row.name, "bits_unet": f"{found['bits']:.3f}", "core_seconds": round(found["seconds"]),
                      "metric": metric, "low": f"{own.low:.3f}", "value": f"{own.value:.3f}", "high": f"{own.high:.3f}",
                      "prompts": own.count, "steps": args.steps, "machine": here["cpu"], "commit": here["commit"]})
        print("{student} (UNet {bits_unet} bits, {core_seconds} s): {metric} {value} ({low} to {high})"
              .format(**lines[-1]), flush=True)
    return {metric: [float(v) for v in each] for metric, each in values.items()}, lines


def compared(first: str, second: str, values: dict[str, dict[str, list[float]]], args) -> list[dict]:
    """What one student has more than another, by metric."""
    here, lines = machine(), []
    for metric in (name for name in STATISTICS if name in values[first] and name in values[second]):
        gap = metrics.paired_bootstrap(values[first][metric], values[second][metric], STATISTICS[metric])
        lines.append({"first": first, "second": second, "metric": metric, "low": f"{gap.low:.3f}",
                      "first_has_more": f"{gap.value:.3f}", "high": f"{gap.high:.3f}", "prompts": gap.count,
                      "steps": args.steps, "machine": here["cpu"], "commit": here["commit"]})
        print("{first} against {second}: {metric} {first_has_more} ({low} to {high})".format(**lines[-1]), flush=True)
    return lines


if __name__ == "__main__":
    sys.exit(main())
