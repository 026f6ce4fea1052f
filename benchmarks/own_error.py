"""The panel's sample of a checkpoint's own layers against what coding all of them loses, and how long it takes.

    python benchmarks/own_error.py [--only testbed,vega,sdxl] [--calibration FILE] [--folder out/own_error]
                                   [--out benchmarks/results]

testbed  every coded layer really coded at every rate, and at a plan: error over the weights, over what layers do to the
         picture, predicted SNR of the noise; sensitivities from its calibration (planning.py's, if no other is given)
vega     a made, trained-like UNet of Segmind-Vega's shapes: the same sample of every layer's rows instead of coding
         them; sensitivities are the planner's guess (1.5 GB in the folder while it runs)
sdxl     SDXL's shapes, the same normal noise in every layer (5.1 GB in the folder while it runs): processor seconds of
         a sample, compiling included and not

Writes own_error.json; one thread.
"""
from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from alias import RESULTS, ROOT, load_vqpack, machine
from make_checkpoint import read_shapes, write_checkpoint, write_holes

load_vqpack()
from vqpack.vq_core.arch import UNET_PREFIX  # noqa: E402
from vqpack.vq_core.calibration.file import shapes_digest  # noqa: E402
from vqpack.vq_core.compare.output import write_json  # noqa: E402
from vqpack.vq_core.encode import encode_weight  # noqa: E402
from vqpack.vq_core.own_error import Sampled, forget, sample_of  # noqa: E402
from vqpack.vq_core.plan import Plan, make_plan  # noqa: E402
from vqpack.vq_core.planning.costs import sampled_error  # noqa: E402
from vqpack.vq_core.planning.rule import guess  # noqa: E402
from vqpack.vq_core.planning.run import plan as make_planned  # noqa: E402
from vqpack.vq_core.planning.sensitivity import Sensitivity, load_sensitivity  # noqa: E402
from vqpack.vq_core.safetensors_io import SafetensorsFile  # noqa: E402
from vqpack.vq_core.source import Source, open_source  # noqa: E402

TESTBED = ROOT / "testbed" / "pipe"
CODES = [*(("trellis", bits) for bits in (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6)), ("palette", 3), ("palette", 4),
         ("palette", 8), ("uniform", 3), ("uniform", 4)]
FEWER = [("trellis", 2), ("trellis", 3), ("trellis", 4), ("palette", 4), ("uniform", 4)]
PLANNED_BITS = 3.2


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="testbed,vega,sdxl")
    parser.add_argument("--calibration", type=Path, default=None, help="of the testbed, instead of making one")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "own_error")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.out / "own_error.json"
    for part in args.only.split(","):
        rows = {"testbed": testbed, "vega": vega, "sdxl": sdxl}[part](args)
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        found[part] = {"rows": rows, "machine": machine()}
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def testbed(args) -> list[dict]:
    """Against real codes."""
    calibration = args.calibration
    if calibration is None:
        from calibrated_students import make_calibration

        calibration = make_calibration(ROOT / "out" / "planning")
    known = make_planned(TESTBED, bits=3, calibration=calibration, parts=("unet",)).sensitivity
    file = args.folder / "testbed.vqsens.json"
    write_json(file, known.to_json())
    planned = make_planned(TESTBED, bits=PLANNED_BITS, sensitivity=load_sensitivity(file), parts=("unet",)).plan

    def lost(weight, layer, spec):
        return encode_weight(weight, spec, splits=layer.splits).relative_error

    return compared(TESTBED, file, {**plans(CODES), f"plan of {PLANNED_BITS} bits": planned}, lost)


def vega(args) -> list[dict]:
    """Against the same sample of all layers, their squared norms exact."""
    shapes = {key: shape for key, shape in read_shapes("vega").items() if key.startswith(UNET_PREFIX)}
    path, file = args.folder / "vega.safetensors", args.folder / "vega.vqsens.json"
    write_checkpoint(shapes, path, 0, True)
    with open_source(path) as source:
        factor = guess(shapes)
        factors = {layer.key: factor(layer, squared_norm(source.load_float(layer.key))) for layer in coded(source)}
        digest = shapes_digest({layer.key: layer.shape for layer in coded(source)})
        write_json(file, Sensitivity(source.architecture, {"name": path.name}, digest, 1.0, factors).to_json())
    planned = make_planned(path, bits=PLANNED_BITS, sensitivity=load_sensitivity(file), parts=("unet",)).plan
    try:
        return compared(path, file, {**plans(FEWER), f"plan of {PLANNED_BITS} bits": planned},
                        lambda weight, layer, spec: sampled_error(weight, spec, layer.splits))
    finally:
        path.unlink()


def sdxl(args) -> list[dict]:
    """Seconds of the processor: the first of a rate, and without what was compiled for it."""
    shapes, path, name = read_shapes("base"), args.folder / "sdxl.safetensors", args.folder / "sdxl.vqsens.json"
    write_holes(shapes, path)
    with open_source(path) as source, SafetensorsFile(path) as file:
        layers = coded(source)
        places = [(file.entry(layer.key).start, layer.numel) for layer in layers]
        digest = shapes_digest({layer.key: layer.shape for layer in layers})
        factor = guess(shapes)
        factors = {layer.key: factor(layer, float(layer.shape[0])) for layer in layers}
        write_json(name, Sensitivity(source.architecture, {"name": path.name}, digest, 1.0, factors).to_json())
    noise = torch.randn(max(size for _, size in places), generator=torch.Generator().manual_seed(0)).half().numpy()
    with open(path, "r+b") as out:
        for place, size in places:
            out.seek(place)
            out.write(noise[:size].tobytes())
    found = []
    for (method, bits), sensitivity in ((code, file) for code in FEWER for file in (None, name)):
        row = {"code": f"{method} {bits:g}", "sensitivities": sensitivity is not None}
        for when in ("seconds_first", "seconds"):
            forget()
            started = time.process_time()
            taken = sample_of(path, make_plan(bits, method), sensitivity)
            row[when] = round(time.process_time() - started, 3)
        found.append({**row, "error": taken.weights.error, "layers": len(taken.layers), "of": taken.of})
        print(found[-1], flush=True)
    path.unlink()
    return found


def plans(codes) -> dict[str, Plan]:
    """Name -> plan of one rate."""
    return {f"{method} {bits:g}": make_plan(bits, method) for method, bits in codes}


def coded(source: Source) -> list:
    """The UNet's layers that are coded."""
    return [layer for layer in source.layers if layer.component == "unet" and not layer.dense]


def squared_norm(weight: torch.Tensor) -> float:
    """Sum of squares."""
    return float(weight.double().square().sum())


def compared(path: Path, file: Path, chosen: dict[str, Plan], lost: Callable) -> list[dict]:
    """Sample and truth of each plan; lost(weight, layer, spec): relative error of a layer."""
    known, truth, found = load_sensitivity(file), {}, []
    with open_source(path) as source:
        for layer in coded(source):
            weight = source.load_float(layer.key)
            norm = squared_norm(weight)
            errors = {spec: lost(weight, layer, spec) for spec in {one.spec_for(layer) for one in chosen.values()}
                      if spec.kind != "dense"}
            truth[layer.key] = (layer, norm, errors)
    for name, one in chosen.items():
        taken = sample_of(path, one, file)
        found.append({"code": name, **against(taken, known, one, truth.values())})
        print("{code:18s} error {sampled:.5f} of {real:.5f} ({error_off:+.2%}, says {deviation:.2%}), by picture "
              "{picture_off:+.2%}, SNR {snr:.2f} of {real_snr:.2f} dB (says {snr_deviation:.2f}), {layers} of {of}"
              .format(**found[-1]), flush=True)
    return found


def against(taken: Sampled, known: Sensitivity, plan: Plan, layers) -> dict:
    """The sample beside the truth of all coded layers."""
    rows = [(layer.numel, known.factors[layer.key] * norm, errors[plan.spec_for(layer)])
            for layer, norm, errors in layers if plan.spec_for(layer).kind != "dense"]
    real = sum(size * error for size, _, error in rows) / sum(size for size, _, _ in rows)
    change = sum(worth * error for _, worth, error in rows)
    picture = change / sum(worth for _, worth, _ in rows)
    return {"sampled": taken.weights.error, "real": real, "error_off": taken.weights.error / real - 1,
            "deviation": taken.weights.deviation / real, "picture": taken.picture.error, "real_picture": picture,
            "picture_off": taken.picture.error / picture - 1, "snr": taken.snr,
            "real_snr": 10 * math.log10(known.noise_power / change), "snr_deviation": taken.snr_deviation,
            "layers": len(taken.layers), "of": len(rows)}


if __name__ == "__main__":
    main()
