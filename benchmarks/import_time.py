"""What the pack adds to ComfyUI's start: import_time.py HOST [--runs 7] [--pack FOLDER] [--json FILE].

Runs under ComfyUI's own Python. Each run is a process in which ComfyUI's loader imports an empty pack and then this
one; the difference counts. Calls of torch.cuda and sockets during the import are counted; there must be none.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BAR_SECONDS = 0.3


def main() -> int:
    """Measure, print, write; 1 where something was called or the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host", help="folder of ComfyUI")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--pack", default=str(ROOT))
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        runs = [_child(args.host, args.pack, base) for _ in range(args.runs)]
    result = _summary(runs)
    if args.json:
        from alias import machine

        Path(args.json).write_text(json.dumps({**machine(), **result}, indent=1) + "\n", encoding="utf-8")
    print("FOUND " + json.dumps(result))
    return int(bool(result["cuda_calls"] or result["sockets"] or result["seconds_added"] > BAR_SECONDS))


def _summary(runs: list[dict]) -> dict:
    added = [run["pack"] - run["empty"] for run in runs]
    return {"runs": len(runs), "seconds_empty": round(statistics.median(run["empty"] for run in runs), 4),
            "seconds_pack": round(statistics.median(run["pack"] for run in runs), 4),
            "seconds_added": round(statistics.median(added), 4), "seconds_added_least": round(min(added), 4),
            "seconds_added_most": round(max(added), 4), "bar_seconds": BAR_SECONDS, "nodes": runs[0]["nodes"],
            "cuda_calls": sorted({name for run in runs for name in run["cuda"]}),
            "sockets": max(run["sockets"] for run in runs)}


def _child(host: str, pack: str, base: str) -> dict:
    code = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import import_time; import_time.measure()"
    done = subprocess.run([sys.executable, "-c", code, host, pack, base], capture_output=True, text=True, cwd=host,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RUN ")]
    if not lines:
        raise SystemExit(f"ComfyUI did not start:\n{done.stderr[-3000:]}")
    return json.loads(lines[-1][4:])


def measure() -> None:
    """In the child: ComfyUI first, then an empty pack twice (the first one warms the loader), then the pack."""
    import asyncio

    _, host, pack, base = sys.argv
    sys.path.insert(0, host)
    sys.argv = ["main.py", "--cpu", "--base-directory", base]
    import comfy.options

    comfy.options.enable_args_parsing()
    import nodes

    empty, loop = Path(base) / "custom_nodes", asyncio.new_event_loop()      # a loop has sockets of its own
    for name in ("warm", "empty"):
        (empty / name).mkdir(parents=True, exist_ok=True)
        (empty / name / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n", encoding="utf-8")

    def seconds(folder) -> float:
        started = time.perf_counter()
        if not loop.run_until_complete(nodes.load_custom_node(str(folder))):
            raise SystemExit(f"ComfyUI cannot import {folder}")
        return time.perf_counter() - started

    seconds(empty / "warm")
    before = set(nodes.NODE_CLASS_MAPPINGS)
    found = {"empty": seconds(empty / "empty")}
    with _counting() as counted:
        found["pack"] = seconds(pack)
    print("RUN " + json.dumps({**found, **counted, "nodes": len(set(nodes.NODE_CLASS_MAPPINGS) - before)}))


class _counting:
    """Counts calls of everything in torch.cuda and every socket made."""

    def __enter__(self) -> dict:
        import socket

        import torch

        self.counted, self.undo = {"cuda": [], "sockets": 0}, []
        functions = [(torch.cuda, n) for n in dir(torch.cuda) if callable(getattr(torch.cuda, n)) and n[:1].islower()]
        functions += [(torch._C, n) for n in dir(torch._C) if n.startswith("_cuda_")]
        for module, name in functions:
            self._replace(module, name, self._noting(f"{module.__name__}.{name}", getattr(module, name)))
        made, counted = socket.socket.__init__, self.counted

        def init(sock, *args, **kwargs):
            counted["sockets"] += 1
            made(sock, *args, **kwargs)

        self._replace(socket.socket, "__init__", init)
        return self.counted

    def __exit__(self, *_) -> None:
        for module, name, value in reversed(self.undo):
            setattr(module, name, value)

    def _replace(self, module, name: str, value) -> None:
        self.undo.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def _noting(self, name: str, call):
        def noted(*args, **kwargs):
            self.counted["cuda"].append(name)
            return call(*args, **kwargs)
        return noted


if __name__ == "__main__":
    sys.exit(main())
