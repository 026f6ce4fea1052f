"""What the planner foresees against what happens, on the testbed: damage of codes, sensitivities, vectors a call, time.

    python benchmarks/planning.py [--only damage,sensitivity,tokens,seconds] [--every 13] [--prompts 48]
                                  [--calibration FILE] [--folder out/planning] [--out benchmarks/results]

damage       every `--every`-th coded layer coded with each of CODES: the damage the planner predicts over the damage
             done (both by the same sensitivities and gram); geometric mean and extremes by code, and the seconds of a
             core that predicting all of them and coding with each take
sensitivity  the same layers, one at a time replaced by its 2-bit code: predicted change of the noise over the change,
             for captions and seeds the calibration has not seen
tokens       calibrations with 8, 32, 128 and 256 input vectors of a call, against all of them: the output error that
             feedback learned from each leaves a 3x3 convolution for other captions and seeds, errors of columns equal
seconds      planning the whole testbed with and without the calibration

The calibration is that of calibrated.py, if no other is given. Writes planning.json; one thread.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from alias import RESULTS, ROOT, load_vqpack, machine
from calibrated_students import GUIDANCE, SCENES, STEPS, TIMESTEPS, make_calibration
from quality_measure import load_teacher
from quality_students import TESTBED, layers
from testbed_bench import SIDE, Way, calibration_of, geometric_mean, originals, scene_captions

load_vqpack()
from vqpack.vq_core.arch import layers as arch_layers  # noqa: E402
from vqpack.vq_core.calibration import Calibration  # noqa: E402
from vqpack.vq_core.calibration.calls import Calls, draw  # noqa: E402
from vqpack.vq_core.calibration.settings import Picture, preset_settings  # noqa: E402
from vqpack.vq_core.encode import encode_weight, to_matrix  # noqa: E402
from vqpack.vq_core.encode.feedback import expected_error, make_feedback  # noqa: E402
from vqpack.vq_core.gram import output_error  # noqa: E402
from vqpack.vq_core.planning.costs import Costs  # noqa: E402
from vqpack.vq_core.planning.run import plan  # noqa: E402
from vqpack.vq_core.source import open_source  # noqa: E402
from vqpack.vq_core.spec import TRELLIS_RATES, make_spec  # noqa: E402

PARTS = ("damage", "sensitivity", "tokens", "seconds")
CODES = {**{f"trellis {bits:g}": make_spec("trellis", bits) for bits in TRELLIS_RATES},
         **{f"palette {bits}": make_spec("palette", bits) for bits in (5, 6, 8)},
         **{f"uniform {bits}": make_spec("uniform", bits) for bits in (2, 3, 4)}}
REPLACED = "trellis 2"
TOKENS, ALL = (8, 32, 128, 256), 4096      # 64-pixel pictures have at most 512 input vectors a call
UNSEEN, OTHER_SEED = 8, 1000               # pictures whose noise is compared; first seed of what nothing was made with


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--every", type=int, default=13)
    parser.add_argument("--prompts", type=int, default=48, help="pictures of the calibrations of `tokens`")
    parser.add_argument("--calibration", type=Path, default=None, help="of the testbed, instead of making one")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "planning")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.calibration is None and set(args.only.split(",")) != {"tokens"}:
        args.calibration = make_calibration(args.folder)
    path = args.out / "planning.json"
    for part in args.only.split(","):
        result = {"damage": damage, "sensitivity": sensitivity, "tokens": tokens, "seconds": seconds}[part](args)
        found = json.loads(path.read_text()) if path.exists() else {}
        found[part] = {**result, "machine": machine()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def damage(args) -> dict:
    """Predicted over done, by code."""
    rows = []
    with Calibration(args.calibration) as calibration:
        costs = Costs(tuple(CODES.values()), None, calibration)
        for layer in sampled(args.every):
            weight, gram = originals()[layer.key], calibration.gram(layer.key)
            started = time.process_time()
            predicted = costs.of(layer, weight).costs
            predicting = time.process_time() - started
            for (code, spec), promised in zip(CODES.items(), predicted):
                started = time.process_time()
                done = done_to(weight, encode_weight(weight, spec, splits=layer.splits, gram=gram).weight, calibration,
                               layer.key)
                rows.append({"layer": layer.key, "split": bool(layer.splits), "code": code, "ratio": promised / done,
                             "coding_seconds": round(time.process_time() - started, 2),
                             "predicting_seconds": round(predicting, 2)})
            print(f"{layer.key}: " + ", ".join(f"{row['code']} {row['ratio']:.2f}" for row in rows[-len(CODES):]),
                  flush=True)
    found = {"by_code": {code: summary([row for row in rows if row["code"] == code]) for code in CODES}, "rows": rows}
    for code, row in found["by_code"].items():
        print(f"{code}: predicted over done {row['mean']:.2f} ({row['least']:.2f} to {row['most']:.2f})")
    predicting = sum(row["predicting_seconds"] for row in rows) / len(CODES)
    coding = {code: round(row["coding_seconds"], 1) for code, row in found["by_code"].items()}
    print(f"predicting all codes {predicting:.1f} s of a core, coding {coding}")
    return {**found, "predicting_seconds": round(predicting, 1)}


def summary(rows: list[dict]) -> dict:
    """Ratios of several layers in short, seconds in all."""
    ratios = [row["ratio"] for row in rows]
    return {"layers": len(rows), "mean": geometric_mean(ratios), "least": min(ratios), "most": max(ratios),
            **({"coding_seconds": sum(row["coding_seconds"] for row in rows)} if "coding_seconds" in rows[0] else {})}


def done_to(weight: torch.Tensor, coded, calibration: Calibration, key: str) -> float:
    """Squared change of the noise that a coded layer makes, by its rows' sensitivities and its gram."""
    lost = to_matrix(weight - coded.decode(torch.float32), 0, weight.shape[1])
    blocks = calibration.gram(key).all_inputs().float()
    return float((calibration.sensitivity(key).double() * output_error(lost, blocks)).sum())


def sampled(every: int):
    """Every so many of the testbed's coded layers, as the architecture describes them."""
    known = {layer.key for layer in layers()[0]}
    with open_source(TESTBED) as source:
        return [layer for layer in arch_layers(source) if layer.key in known][::every]


def sensitivity(args) -> dict:
    """Predicted over measured change of the noise, a layer at a time."""
    calls, unet, rows = unseen_calls(args), load_teacher().unet, []
    before = [calls_.ask(unet, i) for calls_ in calls for i in range(len(calls_.steps))]
    modules = {layer.key: layer.parameter.removesuffix(".weight") for layer in layers()[0]}
    with Calibration(args.calibration) as calibration:
        for layer in sampled(args.every):
            weight = originals()[layer.key]
            coded = encode_weight(weight, CODES[REPLACED], splits=layer.splits, gram=calibration.gram(layer.key)).weight
            changed = change(unet, modules[layer.key], coded.decode(torch.float32), calls, before)
            rows.append({"layer": layer.key, "ratio": done_to(weight, coded, calibration, layer.key) / changed})
            print(f"{layer.key}: predicted over measured change {rows[-1]['ratio']:.2f}", flush=True)
    found = summary(rows)
    print(f"sensitivities, {REPLACED}: {found['mean']:.2f} ({found['least']:.2f} to {found['most']:.2f})")
    return {**found, "rows": rows}


def unseen_calls(args) -> list[Calls]:
    """Of pictures that are not in the calibration."""
    settings = preset_settings("base", (SIDE, SIDE), steps=STEPS, timesteps=TIMESTEPS, guidance=GUIDANCE)
    prompts = scene_captions(min(UNSEEN, args.prompts), Way().scenes)
    return [draw(load_teacher(), Picture(i, prompt, OTHER_SEED + i, False), settings)
            for i, prompt in enumerate(prompts)]


def change(unet, module: str, weight: torch.Tensor, calls: list[Calls], before: list[torch.Tensor]) -> float:
    """Squared change of the guided noise when a layer gets this weight: geometric mean over calls."""
    layer = unet.get_submodule(module)
    own, layer.weight = layer.weight, torch.nn.Parameter(weight.reshape(layer.weight.shape), requires_grad=False)
    try:
        after = [calls_.ask(unet, i) for calls_ in calls for i in range(len(calls_.steps))]
    finally:
        layer.weight = own
    return geometric_mean([float(guided(a - b).double().square().sum()) for a, b in zip(after, before)])


def guided(halves: torch.Tensor) -> torch.Tensor:
    """What a step is made with, of the answers without and with the prompt [2, 4, h, w] -> [4, h, w]"""
    return halves[0] + GUIDANCE * (halves[1] - halves[0])


def tokens(args) -> dict:
    """Error left to 3x3 convolutions, over that of a calibration with all vectors."""
    given = {"steps": STEPS, "timesteps": TIMESTEPS, "guidance": GUIDANCE, "sensitivity": False}
    captions = scene_captions(args.prompts, SCENES)
    truth = calibration_of(args.folder, "truth", scene_captions(args.prompts, Way().scenes), tokens=ALL,
                           seed=OTHER_SEED, **given)
    errors, used = {}, {}
    for count in (*TOKENS, ALL):
        started = time.process_time()
        path = calibration_of(args.folder, f"tokens-{count}", captions, tokens=count, **given)
        used[count] = round(time.process_time() - started, 1)
        errors[count] = left_over(path, truth, args.every)
    loss = {count: geometric_mean([errors[count][key] / errors[ALL][key] for key in errors[ALL]]) for count in TOKENS}
    for count, value in loss.items():
        print(f"{count} vectors a call: error {value:.3f} times that of all, {used[count]} s of a core")
    return {"over_all": loss, "layers": len(errors[ALL]), "seconds": used, "pictures": args.prompts}


def left_over(path: Path, truth: Path, every: int) -> dict[str, float]:
    """3x3 convolutions (one group each, every few of them) -> error of outputs for `truth`, every column's error 1."""
    found = {}
    with Calibration(path) as calibration, Calibration(truth) as real:
        convolutions = [keys[0] for keys in calibration.shared().values() if len(calibration.layers[keys[0]].shape) == 4
                        and calibration.layers[keys[0]].shape[2] > 1]
        for key in convolutions[::max(1, every // 4)]:
            forward = make_feedback(calibration.gram(key)).forward
            found[key] = float(expected_error(forward.double(), real.gram(key).all_inputs()))
    return found


def seconds(args) -> dict:
    """Planning the testbed to 2 bits, with its calibration and without."""
    found = {}
    for name, calibration in (("calibrated", args.calibration), ("data-free", None)):
        started = time.process_time()
        planned = plan(TESTBED, bits=2, calibration=calibration, text_encoder_bits=16, parts=("unet",))
        found[name] = {"cpu_seconds": round(time.process_time() - started, 1), "predicted_snr": planned.snr,
                       "wall_seconds": round(planned.seconds, 1)}
        print(f"planning the testbed, {name}: {found[name]['cpu_seconds']} s of a core")
    return found


if __name__ == "__main__":
    sys.exit(main())
