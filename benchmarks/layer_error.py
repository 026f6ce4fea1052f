"""Measures every calibrated code on layers with correlated inputs: squared error of the outputs over their square.

    python benchmarks/layer_error.py [--layers toy,conv,1280x1280,640x2560] [--codes "trellis 2,additive 2"]
                                     [--inputs 4096]

toy is 1280 x 640 (benchmarks/correlated.py). Half of the inputs give the gram, the other half chooses the damping, then
both are used: "in sample", by the gram that was given. "held out" are 8192 others. 4096 inputs are few: a calibration
of 32 pictures takes 131072 from each layer. Bits count all that is stored for the layer but the shared trellis table.
"free" is the same code without a gram, on the held-out inputs. conv is a 3 x 3 convolution on pictures whose
neighboring pixels have much in common, with the whole gram, one a kernel tap, and one shared by all taps.
One thread; seconds are of the processor.
"""
from __future__ import annotations

import argparse
import json
import math
import time

import torch
from alias import RESULTS, load_vqpack, machine
from correlated import gram, inputs, weights

load_vqpack()
from vqpack.vq_core.encode import encode_weight, to_matrix  # noqa: E402
from vqpack.vq_core.gram import Gram, output_error  # noqa: E402
from vqpack.vq_core.spec import TRELLIS_RATES, make_spec  # noqa: E402

HELD_OUT = 8192
CODES = (*(f"trellis {bits}" for bits in TRELLIS_RATES), *(f"palette {bits}" for bits in (2, 3, 4)),
         *(f"{rounding} {bits}" for rounding in ("nearest", "gptq", "adaround") for bits in (2, 3, 4)),
         *(f"additive {bits}" for bits in (1, 2, 3, 4)), "additive 2 best",
         *(f"product {bits}" for bits in (1, 2, 3, 4)))
FEW = ("trellis 2", "trellis 3", "trellis 4", "gptq 2", "gptq 3", "gptq 4", "additive 2", "product 2")
PIXELS, SMOOTH = 48, 0.8                   # of the pictures a convolution sees; correlation of neighboring pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", default="toy,conv,1280x1280,640x2560")
    parser.add_argument("--codes", default="")
    parser.add_argument("--inputs", type=int, default=4096)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path, results = RESULTS / "layer_error.json", []
    earlier = json.loads(path.read_text())["rows"] if path.exists() else []
    for layer in args.layers.split(","):
        pictures = max(1, args.inputs // 2 // PIXELS**2)
        cases = conv_cases(pictures) if layer == "conv" else linear_cases(layer, args.inputs)
        for name, weight, given, truth in cases:
            for code in args.codes.split(",") if args.codes else CODES if layer == "toy" else FEW:
                results.append({"layer": name, "code": code, "inputs": given.count + given.held_out_count,
                                **measure(weight, code, given, truth)})
                print("{layer:22} {code:15} {inputs:6} inputs {bits:6.3f} bits  in sample {in_sample:.5f}  "
                      "held out {held_out:.5f}  free {free:.5f}  {seconds:6.1f} s".format(**results[-1]), flush=True)
                path.write_text(json.dumps({"machine": machine(),
                                            "rows": merged(earlier, results)}, indent=1) + "\n")


def merged(earlier: list[dict], results: list[dict]) -> list[dict]:
    """Rows measured now in place of earlier ones of the same layer and code."""
    named = ("layer", "code", "inputs")
    now = {tuple(row[name] for name in named) for row in results}
    return [row for row in earlier if tuple(row[name] for name in named) not in now] + results


def linear_cases(layer: str, count: int):
    """[(name, weight [out, in], Gram, held-out gram)]"""
    rows, cols = (1280, 640) if layer == "toy" else map(int, layer.split("x"))
    x = inputs(cols, count, 0)
    half = count // 2
    given = Gram(gram(x[:half]), half, gram(x[half:]), count - half)
    return [(f"{rows}x{cols}", weights(rows, cols), given, gram(inputs(cols, HELD_OUT, 9)))]


def conv_cases(pictures: int, rows: int = 320, channels: int = 64):
    """The same convolution with three kinds of gram; errors are always judged with a whole one."""
    first, second, truth = (sum(gram(patches(channels, 1000 * part + seed)) for seed in range(pictures)) / pictures
                            for part in range(3))
    count = pictures * (PIXELS - 2) ** 2
    weight = weights(rows, 9 * channels).reshape(rows, 3, 3, channels).permute(0, 3, 1, 2).contiguous()
    whole = Gram(first, count, second, count)
    alone = [torch.stack([g[0, i:i + channels, i:i + channels] for i in range(0, 9 * channels, channels)])
             for g in (first, second)]
    shared = [g.mean(0, keepdim=True).repeat(9, 1, 1) for g in alone]
    name = f"conv {rows}x{channels}x3x3"
    return [(f"{name} whole", weight, whole, truth),
            (f"{name} tap", weight, Gram(alone[0], count, alone[1], count), truth),
            (f"{name} shared", weight, Gram(shared[0], count, shared[1], count), truth)]


def patches(channels: int, seed: int) -> torch.Tensor:
    """Inputs of a 3 x 3 convolution, tap-major: float32 [pixels, 9 * channels] of one smooth random picture."""
    picture = inputs(channels, PIXELS * PIXELS, seed).reshape(PIXELS, PIXELS, channels)
    for axis in (0, 1):
        lines = picture.transpose(0, axis)
        for i in range(1, PIXELS):
            lines[i] = SMOOTH * lines[i - 1] + math.sqrt(1 - SMOOTH**2) * lines[i]
    size = PIXELS - 2
    return torch.cat([picture[y:y + size, x:x + size].reshape(-1, channels) for y in range(3) for x in range(3)], 1)


def measure(weight: torch.Tensor, code: str, given: Gram, truth: torch.Tensor) -> dict:
    """Errors, bits and seconds of one code on one layer."""
    method, bits, *effort = code.split()
    rounding = {"rounding": method} if method in ("nearest", "gptq", "adaround") else {}
    spec = make_spec("uniform" if rounding else method, float(bits), **rounding)
    options = {"effort": effort[0]} if effort else {}
    started = time.process_time()
    coded = encode_weight(weight, spec, gram=given, **options)
    seconds = time.process_time() - started
    free = encode_weight(weight, spec, **options)
    errors = [relative(weight, found.weight.decode(), truth) for found in (coded, free)]
    return {"bits": round(coded.weight.bits, 4), "in_sample": coded.output_error,
            "held_out": errors[0], "free": errors[1], "seconds": round(seconds, 2)}


def relative(weight: torch.Tensor, decoded: torch.Tensor, truth: torch.Tensor) -> float:
    """Squared error of outputs over their square for inputs with this gram [1, cols, cols]."""
    matrix, lost = (to_matrix(w, 0, weight.shape[1]) for w in (weight, weight - decoded))
    return float(output_error(lost, truth).sum() / output_error(matrix, truth).sum())


if __name__ == "__main__":
    main()
