"""Quantize Model (VQ) in a real ComfyUI: memory above the loaded model, seconds, and the same result as the long way.

usage: python quantize_model.py COMFYUI FILE [--bits 3 --method trellis --check]     (with ComfyUI's own Python)

FILE: a vqpack file (loaded compressed) or an ordinary checkpoint (stock loader). A random LoRA (rank 16, linear and
convolution layers, strength 0.7) is added, then the graph is quantized into a temporary folder beside FILE. Everything
runs on the CPU in a process of its own, whose resident memory is sampled every 20 ms. --check (vqpack files only): also
decompress FILE, load it in fp16 with the stock loader, add the LoRA, save with ComfyUI's CheckpointSave, quantize that,
and count the coded blobs that differ. Results go to benchmarks/results/quantize_model.json (--out for another place).
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from alias import RESULTS, load_vqpack, machine
from comfyui_sdxl import lora

WAYS = ("short", "long")                   # Quantize Model; decompress, merge, save, Quantize Checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--method", default="trellis")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "quantize_model.json")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        {"short": short_way, "long": long_way}[args.child](args)
    else:
        measure(args)


def measure(args) -> None:
    """Run the children and write the table."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(dir=args.file.resolve().parent) as folder:
        rows = {}
        for way in WAYS[:1 + args.check]:
            subprocess.run([sys.executable, *sys.argv, "--child", way, "--folder", folder], env=environment, check=True)
            rows[way] = json.loads((Path(folder) / f"{way}.json").read_text())
            print(way, json.dumps(rows[way]), flush=True)
        if args.check:
            rows["coded_blobs"], rows["blobs_that_differ"] = different_blobs(Path(folder))
            print("coded blobs", rows["coded_blobs"], "different", rows["blobs_that_differ"])
    settings = {"bits": args.bits, "method": args.method, "threads": args.threads}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps({"machine": machine(), "settings": settings, **rows}, indent=1) + "\n")


def start(args) -> None:
    """ComfyUI's modules on the CPU, then the pack."""
    host = args.comfyui.resolve()
    sys.argv = ["main.py", "--cpu"]
    sys.path.insert(0, str(host))
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd  # noqa: F401

    load_vqpack()


def with_lora(model, clip):
    """The model with the benchmark's LoRA."""
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, clip, lora(model), 0.7, 0.7)


def short_way(args) -> None:
    """Load, sample memory, quantize what is in the graph."""
    start(args)
    import comfy.sd
    import torch
    from vqpack.nodes import files, live
    from vqpack.vq_core.quantize import quantize

    with torch.inference_mode():
        if files.is_vq_file(args.file):
            from vqpack.nodes.loading import load_checkpoint
            model, clip, vae = load_checkpoint(args.file)
        else:
            model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(args.file))[:3]
        model, clip = with_lora(model, clip)
        before, stages = resident(), {}
        with Peak() as peak:
            started = time.monotonic()
            source = live.live(model, clip, vae).source(model, args.folder)
            made = quantize(source, args.folder / "short-vq.safetensors", bits=args.bits, method=args.method,
                            progress=stage_times(stages))
            seconds = time.monotonic() - started
    above = round((peak.bytes - before) / 2**30, 3)
    row = {"loaded_bytes": before, "peak_bytes": peak.bytes, "above_loaded_gib": above,
           "seconds": round(seconds, 1), "stages": {k: round(v[1] - v[0], 1) for k, v in stages.items()},
           "file_bytes": made.file_bytes, "bits": made.bits, "merged_weights": len(model.patches)}
    (args.folder / "short.json").write_text(json.dumps(row))


def long_way(args) -> None:
    """Decompress, load in fp16, merge, save, quantize."""
    start(args)
    import comfy.sd
    import torch
    from vqpack.vq_core.decompress import decompress
    from vqpack.vq_core.quantize import quantize

    dense, merged = args.folder / "dense.safetensors", args.folder / "merged.safetensors"
    started = time.monotonic()
    decompress(args.file, dense)
    with torch.inference_mode():
        model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(dense), model_options={"dtype": torch.float16})[:3]
        model, clip = with_lora(model, clip)
        comfy.sd.save_checkpoint(str(merged), model, clip, vae)
    dense.unlink()
    quantize(merged, args.folder / "long-vq.safetensors", bits=args.bits, method=args.method)
    (args.folder / "long.json").write_text(json.dumps({"seconds": round(time.monotonic() - started, 1)}))


def different_blobs(folder: Path) -> tuple[int, int]:
    """-> (coded weights, how many blobs of the two ways differ)"""
    import torch

    load_vqpack()
    from vqpack.vq_core.container import Reader

    with Reader(folder / "short-vq.safetensors") as one, Reader(folder / "long-vq.safetensors") as two:
        keys = one.coded_keys()
        if sorted(keys) != sorted(two.coded_keys()):
            raise SystemExit("the two ways coded different weights")
        return len(keys), sum(not torch.equal(one.raw(key), two.raw(key)) for key in keys)


def stage_times(stages: dict):
    """A Progress that notes when each stage began and was last heard of."""
    from vqpack.vq_core.progress import Progress

    def note(stage, *_) -> None:
        now = time.monotonic()
        stages[stage] = (stages.get(stage, (now,))[0], now)
    return Progress(note)


def resident() -> int:
    """Resident bytes of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """The most resident bytes seen while it is open."""

    def __init__(self):
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.bytes = max(self.bytes, resident())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()


if __name__ == "__main__":
    main()
