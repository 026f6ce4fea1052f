"""What decoding costs on a CPU: a full-size file decoded once while loading, and layers decoded in each call.

    python benchmarks/cpu_runtime.py [FILE] [--threads 2] [--only load,layers,unet] [--quick]

FILE: a vqpack file, or none: benchmarks/synthetic_file.py writes one of SDXL's exact shapes to a temporary folder (1 GB
in a few seconds, nothing is encoded). load: reading alone, then every weight of the UNet decoded to each dtype as a
loader with "decode once" does, layer by layer and with layers side by side (vq_core/workers.py). layers: a Linear of
1280 -> 10240 and one of 1280 -> 1280 at 256 and 2048 tokens, ours over dense, and with int8 activations. unet: one call
of SDXL's UNet (random weights, 512 px, one picture) in float32 and bfloat16, dense and with int8 activations (integers
kept, convolutions decoded once); the process' peak memory, which holds the random bfloat16 model, 5.1 GB, before it is
coded. Writes results/cpu_runtime.json.
"""
from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from alias import RESULTS, load_vqpack, machine

load_vqpack()
from vqpack.vq_core.activations.int8 import Int8Product, multiply_in_int8  # noqa: E402
from vqpack.vq_core.activations.specs import TokenSpec, make_activations  # noqa: E402
from vqpack.vq_core.bench.parts import random_weight  # noqa: E402
from vqpack.vq_core.bench.timing import measure  # noqa: E402
from vqpack.vq_core.bench.unet import inputs, make_coded, random_unet  # noqa: E402
from vqpack.vq_core.container import Reader  # noqa: E402
from vqpack.vq_core.cost_model import dtype_name, weights_of  # noqa: E402
from vqpack.vq_core.layers import VQConv2d, VQLinear  # noqa: E402
from vqpack.vq_core.progress import Progress  # noqa: E402
from vqpack.vq_core.spec import TrellisSpec  # noqa: E402
from vqpack.vq_core.workers import Stoppable, as_done  # noqa: E402

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SHAPES, TOKENS, SECONDS = ((10240, 1280), (1280, 1280)), (256, 2048), 0.5
SPECS, TINY = (TrellisSpec(3, rotation=0), TrellisSpec(3, rotation=128)), TrellisSpec(3, rotation=16)
WAYS = ("dense float32", "dense bfloat16", "int8 float32", "int8 bfloat16")
PIXELS, CALLS = 512, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="load,layers,unet")
    parser.add_argument("--unet", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a tiny file, small layers, nothing written")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.unet:
        with torch.inference_mode():
            print(json.dumps(unet_row(args.unet, args.quick)))
        return
    path = RESULTS / "cpu_runtime.json"
    found = {**(json.loads(path.read_text()) if path.is_file() else {}), "machine": machine()}
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for part in args.only.split(","):
            found[part] = {"load": load_rows, "layers": layer_rows, "unet": unet_rows}[part](args, Path(folder))
            if not args.quick:
                path.write_text(json.dumps(found, indent=1) + "\n")


def load_rows(args, folder: Path) -> list[dict]:
    """Seconds of reading, then of reading and decoding, for each dtype and for one and several workers."""
    path, rows = args.file or _synthetic(folder, args.quick), []
    for dtype in (None, *DTYPES):
        for workers in (1,) if dtype is None else (1, args.threads):
            seconds, weights = load(path, dtype, workers)
            rows.append({"dtype": None if dtype is None else dtype_name(dtype), "workers": workers,
                         "threads": args.threads, "seconds": round(seconds, 2), "weights": weights})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def load(path: Path, dtype: torch.dtype | None, workers: int) -> tuple[float, int]:
    """-> (seconds, weights decoded); dtype None reads only. One layer's result is kept at a time."""
    started, weights = time.perf_counter(), 0
    with Reader(path, mapped=False) as reader:
        coded = {key: reader.weight(key) for key in reader.coded_keys()}
        if dtype is not None:
            def work(key):
                return coded[key].decode(dtype).numel()

            for _, numel in as_done(work, coded, workers, Stoppable(Progress())):
                weights += numel
        else:
            weights = sum(weights_of(weight.layout) for weight in coded.values())
    return time.perf_counter() - started, weights


def layer_rows(args, _folder: Path) -> list[dict]:
    """Milliseconds dense and ours, and the overhead; then with int8 activations, integers decoded anew and kept."""
    rows = []
    for rows_, cols in ((640, 320),) if args.quick else SHAPES:
        for spec in SPECS:
            weight = random_weight((rows_, cols), spec)
            for dtype in (torch.float32, torch.bfloat16):
                layer, dense = VQLinear(weight), weight.decode(dtype)
                for tokens in TOKENS:
                    x = torch.randn(tokens, cols, dtype=dtype)
                    base = measure(lambda x, dense=dense: torch.nn.functional.linear(x, dense), [x], "cpu", SECONDS)
                    ours = measure(layer, [x], "cpu", SECONDS)
                    int8 = {}
                    for keep in (False, True):
                        layer.product = Int8Product(TokenSpec(8), keep)
                        took = measure(layer, [x], "cpu", SECONDS)
                        int8["int8_kept_ms" if keep else "int8_ms"] = round(took.median * 1e3, 2)
                    layer.product = None
                    rows.append({"weight": [rows_, cols], "rotation": spec.rotation, "dtype": dtype_name(dtype),
                                 "tokens": tokens, "threads": args.threads, "dense_ms": round(base.median * 1e3, 2),
                                 "ours_ms": round(ours.median * 1e3, 2),
                                 "overhead": round(ours.median / base.median - 1, 3), **int8})
                    print(json.dumps(rows[-1]), flush=True)
    return rows


def unet_rows(args, _folder: Path) -> list[dict]:
    """Seconds of a call (the fastest of CALLS) and the peak memory of a process that does nothing else, each way."""
    rows = []
    for way in WAYS:
        command = [sys.executable, str(Path(__file__).resolve()), "--unet", way, "--threads", str(args.threads)]
        command += ["--quick"] if args.quick else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def unet_row(way: str, quick: bool) -> dict:
    """One way, in this process."""
    dtype = torch.bfloat16 if way.endswith("bfloat16") else torch.float32
    unet = random_unet("cpu", torch.bfloat16 if way.startswith("int8") else dtype, quick)
    if way.startswith("int8"):
        unet = make_coded(unet, TINY if quick else SPECS[1], "cpu", dtype).to(dtype)
        multiply_in_int8(unet, make_activations("int8"), keep=True)
        for module in unet.modules():      # convolutions have no int8 product: decoded once
            if isinstance(module, VQConv2d):
                module.register_buffer("decoded", module.coded.decode(dtype), persistent=False)
    arguments, seconds = inputs(64 if quick else PIXELS, 1, "cpu", dtype, quick), []
    for _ in range(CALLS + 1):             # the first decodes what is kept
        started = time.perf_counter()
        out = unet(**arguments).sample
        seconds.append(round(time.perf_counter() - started, 3))
    return {"way": way, "pixels": PIXELS, "threads": torch.get_num_threads(), "first_seconds": seconds[0],
            "seconds": min(seconds[1:]), "finite": bool(out.isfinite().all()),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _synthetic(folder: Path, quick: bool) -> Path:
    from make_checkpoint import read_shapes
    from synthetic_file import write

    return write(folder / "synthetic.safetensors", read_shapes("tiny" if quick else "base"), SPECS[1])


if __name__ == "__main__":
    main()
