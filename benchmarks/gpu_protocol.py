"""All that a GPU is to tell, in one command of under ten minutes: kernels, layers, SDXL's whole UNet, coding.

    python benchmarks/gpu_protocol.py [--device cuda] [--only PART,PART] [--again] [--tiny] [--out FOLDER]

Every part runs in a process of its own with a time limit; what it printed before it failed, hung or crashed is kept and
the failure is a row. Results go to benchmarks/results/gpu_NAME.json, NAME being the GPU's, after each part; a second
run measures only what is missing or failed (--again: all). Weights are random: speed and memory, never quality.
--tiny: small shapes on the CPU in a minute, to see that all of it works. What each part measures: gpu_parts.py.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from alias import RESULTS, load_vqpack, machine

# part -> seconds it may take; together under ten minutes
PARTS = {"ceilings": 40, "decode": 50, "linears": 75, "groups": 30, "convs": 35, "tokens": 40, "unet_512": 70,
         "unet_1024": 90, "text_share": 40, "viterbi": 40, "unet_compiled": 85}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    load_vqpack()
    args.device = args.device or ("cpu" if args.tiny else "cuda")
    if args.child:
        child(args)
    else:
        measure_all(args)


def child(args) -> None:
    """One part: a line for each row."""
    import gpu_parts
    from vqpack.vq_core.bench.run import guarded

    for row in guarded(lambda: gpu_parts.rows(args.child, args.device, args.tiny)):
        print("ROW " + json.dumps(row), flush=True)


def measure_all(args) -> None:
    """Every part that is missing, in a process of its own; the file is written after each."""
    import torch
    from vqpack.vq_core.bench.run import machine as hardware

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("gpu_protocol.py needs a GPU: torch.cuda.is_available() is False here (--tiny: on the CPU)")
    about = hardware(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"gpu_{name_of(about, args.tiny)}.json"
    found = json.loads(path.read_text()) if path.is_file() else {"parts": {}}
    found |= {"machine": about, "commit": machine()["commit"], "tiny": args.tiny}
    for part in args.only.split(","):
        if args.again or not is_done(found["parts"].get(part)):
            found["parts"][part] = run_part(part, args)
            write(path, found)
        print(part, summary(found["parts"][part]), flush=True)
    print(path.name)


def name_of(about: dict, tiny: bool) -> str:
    """nvidia_h100_80gb_hbm3"""
    return "tiny" if tiny else re.sub(r"[^a-z0-9]+", "_", str(about.get("gpu", "cpu")).lower()).strip("_")


def is_done(part: dict | None) -> bool:
    """Whether a part was measured to its end without a failure."""
    return part is not None and part["ended"] == "done" and not any("error" in row for row in part["rows"])


def run_part(part: str, args) -> dict:
    """-> {"rows", "seconds", "ended": "done", "stopped after N seconds" or its status}"""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", part, "--device", args.device]
    process = subprocess.Popen([*command, *(["--tiny"] if args.tiny else [])], stdout=subprocess.PIPE, text=True)
    limit, started = PARTS[part] * (3 if args.tiny else 1), time.monotonic()      # a busy CPU is no failure
    watch = threading.Timer(limit, process.kill)
    watch.start()
    rows = [json.loads(line[4:]) for line in process.stdout if line.startswith("ROW ")]
    status, took = process.wait(), time.monotonic() - started
    watch.cancel()
    ended = "done" if status == 0 else f"stopped after {limit} s" if took >= limit else f"status {status}"
    return {"rows": rows, "seconds": round(took, 1), "ended": ended}


def summary(part: dict) -> str:
    """One line."""
    failed = [row["error"] for row in part["rows"] if "error" in row]
    lines = [f"{part['ended']}, {len(part['rows'])} rows, {part['seconds']} s", *(f"  failed: {e}" for e in failed)]
    return "\n".join(lines)


def write(path: Path, found: dict) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    main()
