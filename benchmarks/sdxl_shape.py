"""The full-size rows: a 6.94 GB checkpoint quantized, inspected, loaded, verified and decompressed, with peak memory.

usage: sdxl_shape.py CHECKPOINT FOLDER [--no-accelerators] [--window 8] [--only quantize,inspect,load,verify,decompress]

CHECKPOINT: benchmarks/make_checkpoint.py makes one of SDXL's exact shapes. Every step runs in a process of its own
and reports its wall time and its peak resident size as the operating system counts it. --no-accelerators hides
numba and Triton, as on a Windows portable install. Results go to benchmarks/results/sdxl_shape[...].json.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from alias import RESULTS, load_vqpack, machine

STEPS = ("quantize", "inspect", "load", "verify", "decompress")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--window", type=int)
    parser.add_argument("--device")
    parser.add_argument("--no-accelerators", action="store_true")
    parser.add_argument("--only", default=",".join(STEPS))
    parser.add_argument("--tag", default="")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    args.folder.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"sdxl_shape{'_' + args.tag if args.tag else ''}.json"
    rows = json.loads(out.read_text()) if out.exists() else {}
    rows["machine"] = machine()
    rows["settings"] = {"bits": args.bits, "window": args.window, "device": args.device,
                        "accelerators": not args.no_accelerators, "checkpoint_bytes": args.checkpoint.stat().st_size}
    for step in args.only.split(","):
        rows[step] = run_step(step)
        out.write_text(json.dumps(rows, indent=1) + "\n")
        print(step, json.dumps(rows[step]), flush=True)


def run_step(step: str) -> dict:
    """One step in a fresh process -> its own numbers, wall seconds and peak resident bytes."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *sys.argv, "--child", step], stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{step} failed with status {status}")
    return {**json.loads(output.splitlines()[-1]), "wall_seconds": round(time.monotonic() - started, 1),
            "peak_rss_bytes": usage.ru_maxrss * 1024}


def child(args) -> None:
    """The step itself; its last line of output is JSON."""
    if args.no_accelerators:
        sys.modules["numba"] = sys.modules["triton"] = None
    load_vqpack()
    small, big = args.folder / "small.safetensors", args.folder / "decompressed.safetensors"
    print(json.dumps(globals()[f"step_{args.child}"](args, small, big)))


def step_quantize(args, small: Path, big: Path) -> dict:
    """Checkpoint -> file."""
    from vqpack.vq_core.cli.console import progress
    from vqpack.vq_core.quantize import quantize

    result = quantize(args.checkpoint, small, bits=args.bits, window=args.window, overwrite=True,
                      device=args.device, progress=progress())
    errors = [layer.relative_error for layer in result.layers]
    return {"seconds": round(result.seconds, 1), "file_bytes": result.file_bytes, "bits": result.bits,
            "coded_layers": len(result.layers), "largest_relative_error": max(errors)}


def step_inspect(args, small: Path, big: Path) -> dict:
    """Header, records and report."""
    from vqpack.vq_core.inspection import inspect_file

    return {"layers": len(inspect_file(small)["layers"])}


def step_load(args, small: Path, big: Path) -> dict:
    """Every blob and tensor in memory, checksums checked, nothing decoded."""
    from vqpack.vq_core.container import Reader

    started = time.monotonic()
    with Reader(small, mapped=False) as reader:
        coded = {key: reader.weight(key) for key in reader.coded_keys()}
        dense = {key: reader.tensor(key) for key in reader.keys() if key not in coded}
    held = sum(w.nbytes for w in coded.values()) + sum(t.nbytes for t in dense.values())
    return {"seconds": round(time.monotonic() - started, 2), "held_bytes": held, "file_bytes": small.stat().st_size}


def step_verify(args, small: Path, big: Path) -> dict:
    """Integrity of the file."""
    from vqpack.vq_core.verify import verify_file

    started = time.monotonic()
    return {"problems": verify_file(small, None), "seconds": round(time.monotonic() - started, 2)}


def step_decompress(args, small: Path, big: Path) -> dict:
    """File -> ordinary checkpoint with the source's keys, shapes and dtypes."""
    from vqpack.vq_core.decompress import decompress

    started = time.monotonic()
    path = decompress(small, big, overwrite=True)
    return {"seconds": round(time.monotonic() - started, 1), "bytes": path.stat().st_size}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
