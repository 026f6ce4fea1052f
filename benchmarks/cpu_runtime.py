"""What decoding costs on a CPU: a full-size file decoded once while loading, and layers decoded in each call.

    python benchmarks/cpu_runtime.py [FILE] [--threads 2] [--only load,layers] [--quick]

FILE: a vqpack file, or none: benchmarks/synthetic_file.py writes one of SDXL's exact shapes to a temporary folder (1 GB
in a few seconds, nothing is encoded). load: reading alone, then every weight of the UNet decoded to each dtype as a
loader with "decode once" does, layer by layer and with layers side by side (vq_core/workers.py). layers: a Linear of
1280 -> 10240 and one of 1280 -> 1280 at 256 and 2048 tokens, ours over dense. Writes results/cpu_runtime.json.
"""
from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from alias import RESULTS, load_vqpack, machine

load_vqpack()
from vqpack.vq_core.bench.parts import random_weight  # noqa: E402
from vqpack.vq_core.bench.timing import measure  # noqa: E402
from vqpack.vq_core.container import Reader  # noqa: E402
from vqpack.vq_core.cost_model import dtype_name, weights_of  # noqa: E402
from vqpack.vq_core.layers import VQLinear  # noqa: E402
from vqpack.vq_core.progress import Progress  # noqa: E402
from vqpack.vq_core.spec import TrellisSpec  # noqa: E402
from vqpack.vq_core.workers import Stoppable, as_done  # noqa: E402

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SHAPES, TOKENS = ((10240, 1280), (1280, 1280)), (256, 2048)
SPECS = (TrellisSpec(3, rotation=0), TrellisSpec(3, rotation=128))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="load,layers")
    parser.add_argument("--quick", action="store_true", help="a tiny file, small layers, nothing written")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {"machine": machine()}
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for part in args.only.split(","):
            found[part] = load_rows(args, Path(folder)) if part == "load" else layer_rows(args)
    if not args.quick:
        (RESULTS / "cpu_runtime.json").write_text(json.dumps(found, indent=1) + "\n")


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


def layer_rows(args) -> list[dict]:
    """Milliseconds dense and ours, and the overhead."""
    rows = []
    for rows_, cols in ((640, 320),) if args.quick else SHAPES:
        for spec in SPECS:
            weight = random_weight((rows_, cols), spec)
            for dtype in (torch.float32, torch.bfloat16):
                layer, dense = VQLinear(weight), weight.decode(dtype)
                for tokens in TOKENS:
                    x = torch.randn(tokens, cols, dtype=dtype)
                    base = measure(lambda x, dense=dense: torch.nn.functional.linear(x, dense), [x], "cpu", 1.0)
                    ours = measure(layer, [x], "cpu", 1.0)
                    rows.append({"weight": [rows_, cols], "rotation": spec.rotation, "dtype": dtype_name(dtype),
                                 "tokens": tokens, "threads": args.threads, "dense_ms": round(base.median * 1e3, 2),
                                 "ours_ms": round(ours.median * 1e3, 2),
                                 "overhead": round(ours.median / base.median - 1, 3)})
                    print(json.dumps(rows[-1]), flush=True)
    return rows


def _synthetic(folder: Path, quick: bool) -> Path:
    from make_checkpoint import read_shapes
    from synthetic_file import write

    return write(folder / "synthetic.safetensors", read_shapes("tiny" if quick else "base"), SPECS[1])


if __name__ == "__main__":
    main()
