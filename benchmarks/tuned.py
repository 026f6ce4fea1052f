"""What tuning brings on the testbed: students before and after, against others tuned as long, by part, over time.

    python benchmarks/tuned.py [--only students,low,ablation,curve] [--students REGEX] [--steps 300] [--prompts 32]
                               [--folder out/tuned] [--out benchmarks/results] [--plot docs/images]

Calibrated as calibrated.py does it; learned from 96 other captions (a fifth of them judges), 20 steps, guidance 3.

students  coded students and the same tuned for --steps steps; "planned": rates chosen layer by layer
low       the trellis at 1 and 1.5 bits, before and after; with --prompts 128 also its kernel distance
ablation  the 2-bit trellis with one kind of parameter trained at a time, then all of them with a low-rank branch,
          column scales, flips, another loss, another weighting of noise levels, the student's own trajectories
curve     the 2-bit trellis: data-free, calibrated, tuned for a quarter, for --steps, for four times as many steps

Drawn and measured on the held-out captions of quality.py. Bits: all that is stored for the UNet. Seconds: of a
core, for coding or, in tuned rows, for recording and learning. Writes tuned.csv and, for PAIRS, what the first has
more than the second, paired bootstrap, tuned_pairs.csv; rows of other steps and prompts stay; with 32 prompts
and matplotlib also tuned-pictures.png. A stopped run goes on. One thread.
"""
from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from alias import RESULTS, ROOT, load_vqpack, machine
from calibrated_students import GUIDANCE, STEPS, make_calibration
from quality_measure import Settings, eight_bits, load_teacher
from quality_report import attribute_scores, kernel_distance
from quality_students import TESTBED
from testbed_bench import BATCH, CODE, Way, add_rows, coded, digest, publish, sample, scene_captions, teacher_way

load_vqpack()
from vqpack.vq_core import metrics, trajectory  # noqa: E402
from vqpack.vq_core.pipeline import load_unet  # noqa: E402
from vqpack.vq_core.plan import Plan, make_plan  # noqa: E402
from vqpack.vq_core.planning.run import plan as make_planned  # noqa: E402
from vqpack.vq_core.tuning.masters import Trained  # noqa: E402
from vqpack.vq_core.tuning.run import tune  # noqa: E402
from vqpack.vq_core.tuning.settings import Tuning  # noqa: E402

TUNING_CODE = (*CODE, "vq_core/tuning")
LESSONS, SCENES = 96, 6                    # captions learned from and the seed of their scenes; 1, 5 and 11 are taken
NOTHING = {"scales": False, "books": False, "biases": False, "norms": False, "dense": False, "tables": "frozen"}
STATISTICS = {"latent_psnr": "median", "noise_snr": "median", "attributes": "mean"}
PAIRS = [(f"{ours}{tuned}", theirs) for ours, others in (
             ("trellis-2", ("gptq-3",)), ("planned-2", ("gptq-3",)), ("trellis-3", ("gptq-4", "adaround-4")),
             ("planned-3", ("gptq-4", "adaround-4")))
         for other in others for tuned, theirs in (("", other), ("-tuned", other), ("-tuned", f"{other}-tuned"))]
PAIRS += [(f"{name}-tuned", name) for name in ("trellis-1", "trellis-1.5", "trellis-2", "trellis-3", "planned-2",
                                               "planned-3", "gptq-3", "gptq-4", "adaround-4")]


@dataclass(frozen=True)
class Student:
    """What is coded, and how it is tuned: share of --steps, Tuning's and Trained's fields."""

    name: str
    plan: Plan | float                     # a number: planned to so many bits on average
    calibrated: bool = True
    share: float = 0.0                     # 0: not tuned
    tuning: dict = field(default_factory=dict)
    trained: dict = field(default_factory=dict)


def students() -> list[Student]:
    """Coded and tuned alike."""
    plans = {**{f"trellis-{bits:g}": make_plan(bits) for bits in (1, 1.5, 2, 3)},
             **{f"planned-{bits}": float(bits) for bits in (2, 3)},
             **{f"gptq-{bits}": make_plan(bits, "uniform", rounding="gptq") for bits in (3, 4)},
             "adaround-4": make_plan(4, "uniform", rounding="adaround")}
    return [student for name, plan in plans.items()
            for student in (Student(name, plan), Student(f"{name}-tuned", plan, share=1.0))]


def low() -> list[Student]:
    """The lowest rates, of those of students(), and 1 bit data-free."""
    return [Student("trellis-1-free", make_plan(1), calibrated=False),
            *(student for student in students() if student.name.removesuffix("-tuned") in ("trellis-1", "trellis-1.5"))]


def ablation() -> list[Student]:
    """The 2-bit trellis, one part at a time."""
    made, plan = {}, make_plan(2)
    for kind in ("scales", "biases", "norms", "dense"):
        made[kind] = {**NOTHING, kind: True}
    made |= {"shared tables": {**NOTHING, "tables": "shared"}, "tables": {**NOTHING, "tables": "layer"}}
    found = [Student("trellis-2", plan), Student("trellis-2-tuned", plan, share=1.0)]
    found += [Student(f"trellis-2 {name}", plan, share=1.0, trained=fields) for name, fields in made.items()]
    return [*found, Student("trellis-2 rank 4", plan, share=1.0, trained={"rank": 4}),
            Student("trellis-2 columns", plan, share=1.0, trained={"columns": True}),
            Student("trellis-2 flips", plan, share=1.0, tuning={"flips": 0.01}, trained={"codes": True}),
            Student("trellis-2 guided", plan, share=1.0, tuning={"loss": "guided"}),
            Student("trellis-2 relative", plan, share=1.0, tuning={"weighting": "relative"}),
            Student("trellis-2 mixed", plan, share=1.0, tuning={"trajectory": "mixed"})]


def curve() -> list[Student]:
    """The 2-bit trellis over time."""
    plan = make_plan(2)
    return [Student("trellis-2-free", plan, calibrated=False), Student("trellis-2", plan),
            *(Student(f"trellis-2-tuned{'' if share == 1 else f'-{share:g}'}", plan, share=share)
              for share in (0.25, 1.0, 4.0))]


PARTS = {"students": students, "low": low, "ablation": ablation, "curve": curve}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--students", default="", help="regular expression")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "tuned")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    named = {student.name: student for part in args.only.split(",") for student in PARTS[part]()
             if re.search(args.students, student.name)}
    values: dict[str, dict[str, list[float]]] = {}
    found = {}
    for student in named.values():
        found[student.name] = measured(student, args)
        values[student.name], rows = lines(student, found[student.name], args)
        add_rows(args.out / "tuned.csv", rows, ("student", "steps", "prompts", "metric"))
    pairs = [row for pair in PAIRS if set(pair) <= values.keys() for row in compared(*pair, values, args)]
    if pairs:
        add_rows(args.out / "tuned_pairs.csv", pairs, ("first", "second", "steps", "prompts", "metric"))
    if args.prompts == Way().prompts and find_spec("matplotlib") is not None:
        from tuned_plots import draw
        way = Way(prompts=args.prompts)
        theirs = eight_bits(teacher_way(args.folder, way).images)
        draw(found, scene_captions(args.prompts, way.scenes), theirs, args.plot)
    return 0


def measured(student: Student, args) -> dict:
    """Bits, seconds, values a prompt and pictures of one student; kept."""
    stem = f"{student.name.replace(' ', '-')}-{_digest(student, args)}"
    made, kept = args.folder / f"{stem}.json", args.folder / f"{stem}-{args.prompts}.pt"
    if not made.is_file():
        started = time.process_time()
        path, bits = make(student, args, args.folder / stem)
        facts = {"file": path.name, "bits": bits, "seconds": time.process_time() - started}
        publish(made, lambda part: part.write_text(json.dumps(facts)))
    found = json.loads(made.read_text())
    if not kept.is_file():
        publish(kept, partial(torch.save, drawn(args.folder / found["file"], args)))
    return {**found, **torch.load(kept, weights_only=True)}


def make(student: Student, args, tuned_path: Path) -> tuple[Path, float]:
    """Code and tune -> the file, stored bits a weight of the whole UNet"""
    calibration = make_calibration(args.folder) if student.calibrated else None
    plan = student.plan
    if not isinstance(plan, Plan):
        plan = make_planned(TESTBED, bits=plan, calibration=calibration, text_encoder_bits=16, parts=("unet",)).plan
    result, _ = coded(args.folder, student.name.split("-tuned")[0].replace(" ", "-"), plan, calibration)
    if not student.share:
        return result.path, result.bits["unet"]
    tuning = Tuning(steps=max(1, round(student.share * args.steps)), **student.tuning,
                    trained=Trained(**student.trained))
    tuned = tune(result.path, TESTBED, tuned_path, prompts=list(scene_captions(LESSONS, SCENES)), tuning=tuning,
                 steps=STEPS, guidance=GUIDANCE, device="cpu", overwrite=True,
                 recordings=args.folder / "recordings", calibration=calibration if tuning.trained.rank else None)
    return tuned.path, tuned.bits["unet"]


def drawn(path: Path, args) -> dict:
    """Values a prompt against the teacher's, pictures uint8 [n, height, width, 3]."""
    pipe, way = load_teacher(), Way(prompts=args.prompts)
    teacher = teacher_way(args.folder, way)
    own, pipe.unet = pipe.unet, load_unet(path, torch.float32, "cpu", configs=TESTBED)
    try:
        pair, ours = trajectory.noise_along(pipe, teacher, "teacher", BATCH), sample(pipe, way)
    finally:
        pipe.unet = own
    return {"noise_snr": pair.snr().mean((0, 1)), "latent_psnr": trajectory.latent_psnr_along(ours, teacher)[-1],
            "pictures": eight_bits(ours.images)}


def lines(student: Student, found: dict, args) -> tuple[dict[str, list[float]], list[dict]]:
    """Metric -> one value a prompt, and a student's rows of the table."""
    way, here = Way(prompts=args.prompts), machine()
    values = {"latent_psnr": found["latent_psnr"], "noise_snr": found["noise_snr"]}
    theirs = eight_bits(teacher_way(args.folder, way).images)
    scores, _ = attribute_scores({student.name: found["pictures"]}, theirs, Settings(args.prompts, way.steps))
    values |= {metric: own[1] for metric, own in scores.get(student.name, {}).items() if metric in STATISTICS}
    intervals = {metric: metrics.bootstrap(each, STATISTICS[metric]) for metric, each in values.items()}
    distance = kernel_distance(found["pictures"], theirs)
    if isinstance(distance, metrics.Interval):             # a sentence where the pictures are too few
        intervals["kernel_distance"] = distance
    rows = []
    for metric, own in intervals.items():
        rows.append({"student": student.name, "steps": round(student.share * args.steps),
                     "bits": f"{found['bits']:.3f}", "core_seconds": round(found["seconds"]), "metric": metric,
                     "low": f"{own.low:.3f}", "value": f"{own.value:.3f}", "high": f"{own.high:.3f}",
                     "prompts": own.count, "machine": here["cpu"], "commit": here["commit"]})
        print("{student} ({bits} bits, {steps} steps, {core_seconds} s): {metric} {value} ({low} to {high})"
              .format(**rows[-1]), flush=True)
    return {metric: [float(v) for v in each] for metric, each in values.items()}, rows


def compared(first: str, second: str, values: dict[str, dict[str, list[float]]], args) -> list[dict]:
    """What one student has more than another, by metric."""
    here, rows = machine(), []
    for metric, statistic in STATISTICS.items():
        if metric not in values[first] or metric not in values[second]:
            continue
        gap = metrics.paired_bootstrap(values[first][metric], values[second][metric], statistic)
        rows.append({"first": first, "second": second, "steps": args.steps, "metric": metric, "low": f"{gap.low:.3f}",
                     "first_has_more": f"{gap.value:.3f}", "high": f"{gap.high:.3f}", "prompts": gap.count,
                     "machine": here["cpu"], "commit": here["commit"]})
        print("{first} against {second}: {metric} {first_has_more} ({low} to {high})".format(**rows[-1]), flush=True)
    return rows


def _digest(student: Student, args) -> str:
    plan = student.plan.to_json() if isinstance(student.plan, Plan) else student.plan
    asked = json.dumps([asdict(student), plan, args.steps if student.share else 0],
                       sort_keys=True, default=str)
    return digest(TUNING_CODE, asked)


if __name__ == "__main__":
    sys.exit(main())
