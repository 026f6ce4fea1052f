"""One SDXL block calibrated and coded on the CPU at full size, stage by stage, and the whole model drawn up from it.

    python benchmarks/sdxl_block.py CHECKPOINT FOLDER [--bits 3] [--side 1024] [--pictures 2] [--steps 4] [--threads 2]
                                    [--only capture,code,plan] [--layers N] [--out benchmarks/results]

CHECKPOINT: benchmarks/make_checkpoint.py makes one of SDXL's shapes; weights are random, so times and memory mean
something and errors do not. The block is down_blocks.2 (input_blocks.7 and 8: 2 resnets, 20 transformer blocks).

capture  random latents and text states go through the UNet to the block's end (`--pictures` x `--steps` calls, both
         guidance halves, a quarter of the pictures held out); its grams are summed and written as calibrate does it
code     every layer of the block with the damping, rotation and feedback quantize chooses; layers done are kept
plan     `vqpack plan` of the whole UNet without data: seconds, and its mean rates by place and role

Each stage is a process of its own: wall seconds, processor seconds (all threads) and peak resident bytes as the
operating system counts them. The whole model from processor seconds, as if these cores had nothing else to do: a call
by floating point operations counted on its shapes, sums and coding by weights. Writes sdxl_block.json.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from alias import RESULTS, load_vqpack, machine
from sdxl_front import block_layers, load_front, made_calls, operations

load_vqpack()
from vqpack.vq_core.arch import layers as arch_layers  # noqa: E402
from vqpack.vq_core.calibration import Calibration  # noqa: E402
from vqpack.vq_core.calibration.capture import capture, stored_notes  # noqa: E402
from vqpack.vq_core.calibration.file import METADATA, GroupEntry, header_facts  # noqa: E402
from vqpack.vq_core.calibration.groups import Group, groups_of, sweeps  # noqa: E402
from vqpack.vq_core.calibration.kept import Kept  # noqa: E402
from vqpack.vq_core.calibration.run import MEMORY  # noqa: E402
from vqpack.vq_core.calibration.settings import Settings, pictures, preset_settings  # noqa: E402
from vqpack.vq_core.container import Writer  # noqa: E402
from vqpack.vq_core.encode import encode_weight  # noqa: E402
from vqpack.vq_core.planning.draw import write_picture  # noqa: E402
from vqpack.vq_core.planning.run import plan  # noqa: E402
from vqpack.vq_core.planning.tell import describe, marks, subtitle  # noqa: E402
from vqpack.vq_core.progress import Progress  # noqa: E402
from vqpack.vq_core.source import open_source  # noqa: E402
from vqpack.vq_core.spec import make_spec  # noqa: E402
from vqpack.vq_core.workers import Stoppable, as_done, worker_count  # noqa: E402

STAGES = ("capture", "code", "plan")
PROMPTS, LOOKED_AT, DRAWN = 32, 8, 25      # of the whole model's calibration that is drawn up: pictures, calls, steps
GRAMS, CODED = "block.vqcal.safetensors", "layers.jsonl"
SMALLEST = 256                             # pixels of the call that finds the groups


def main(arguments: list[str] | None = None) -> int:
    args = _arguments(arguments)
    if args.stage:
        torch.set_num_threads(args.threads)
        print(json.dumps(globals()[f"stage_{args.stage}"](args)))
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    out = args.out / "sdxl_block.json"
    found = json.loads(out.read_text()) if out.exists() else {}
    for stage in args.only.split(","):
        found[stage] = {**_run(stage, args.threads, arguments), "commit": machine()["commit"]}
        found["machine"] = machine()
        print(stage, json.dumps({key: value for key, value in found[stage].items() if key != "table"}), flush=True)
        if {"capture", "code"} <= found.keys():
            found["whole"] = whole(found["capture"], found["code"])
        args.out.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
    if "whole" in found:
        print("whole model, drawn up:", json.dumps(found["whole"]))
    return 0


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=float, default=3)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=None, help="code only so many layers of the block")
    parser.add_argument("--only", default=",".join(STAGES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--stage", default=None, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _run(stage: str, threads: int, arguments: list[str] | None) -> dict:
    """One stage in a fresh process -> its own numbers, seconds and peak resident bytes."""
    given = sys.argv[1:] if arguments is None else arguments
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, __file__, *map(str, given), "--stage", stage], stdout=subprocess.PIPE,
                               text=True, env=env)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{stage} failed with status {status}")
    return {**json.loads(output.splitlines()[-1]), "wall_seconds": round(time.monotonic() - started, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1), "peak_rss_bytes": usage.ru_maxrss * 1024}


def stage_capture(args) -> dict:
    """Real inputs of the block -> its calibration file."""
    layers = [layer for _, layer in block_layers(args.checkpoint)]
    started = time.monotonic()
    with open_source(args.checkpoint) as source:
        front, shapes = load_front(source), {key: tuple(source.shape(key)) for key in source.keys()}
    loaded = time.monotonic() - started
    settings = preset_settings("base", (args.side, args.side), timesteps=args.steps, threads=args.threads)
    groups, unreached = groups_of(front, layers, settings.full_columns,
                                  lambda: made_calls(front.unet.config, 0, 1, SMALLEST).ask(front, 0))
    if unreached or len(sweeps(groups, MEMORY)) > 1:
        raise RuntimeError(f"{len(unreached)} layers without inputs, {len(sweeps(groups, MEMORY))} sweeps")
    timing = _timed_call(front, args)
    captured = _captured(front, groups, layers, settings, args)
    calls = args.pictures * args.steps
    return {"side": args.side, "calls": calls, "groups": len(groups), "sums_bytes": sum(g.nbytes for g in groups),
            "block_weights": sum(torch.Size(layer.shape).numel() for layer in layers), "layers": len(layers),
            "unet_weights": sum(layer.numel for layer in _coded(shapes)), "load_seconds": round(loaded, 1), **timing,
            **captured, "threads": args.threads,
            "sums_cpu_seconds_a_call": round(max(0.0, captured["summed_call_cpu_seconds"]
                                                 - timing["call_cpu_seconds"]), 2),
            "operations": operations(shapes, args.side), "file_bytes": (args.folder / GRAMS).stat().st_size}


def _timed_call(front, args) -> dict:
    """One call (both halves) without sums, after one that warms up, and how much of it is the block's."""
    calls, inside = made_calls(front.unet.config, 0, 2, args.side), []
    calls.ask(front, 0)
    hook = front.block.register_forward_pre_hook(lambda *_: inside.append(_clock()))
    started = _clock()
    calls.ask(front, 1)
    ended = _clock()
    hook.remove()
    return {**_since(started, ended, "call"), **_since(inside[0], ended, "block")}


def _clock() -> tuple[float, float]:
    """Wall seconds and processor seconds of all threads."""
    return time.monotonic(), time.process_time()


def _since(started: tuple[float, float], ended: tuple[float, float], name: str) -> dict[str, float]:
    return {f"{name}_seconds": round(ended[0] - started[0], 2), f"{name}_cpu_seconds": round(ended[1] - started[1], 2)}


def _captured(front, groups: list[Group], layers, settings: Settings, args) -> dict:
    """capture() and the writing of its file -> seconds: of all, of one call with its sums, of packing and writing"""
    drawn = pictures(tuple(f"picture {i}" for i in range(args.pictures)), settings)
    kept = Kept(args.folder / "calls", "block")
    try:
        for picture in drawn:
            kept.save(picture, made_calls(front.unet.config, picture.index, args.steps, args.side))
        started, ticks = _clock(), _Ticks()
        with Writer(args.folder / GRAMS, True, f"{args.side} {args.pictures} {args.steps}") as writer:
            capture(front, dict(enumerate(groups)), drawn, kept, settings, writer, ticks)
            notes = stored_notes(len(groups), writer)
            entries = [GroupEntry(**{name: note[name] for name in GroupEntry.__dataclass_fields__}) for note in notes]
            group_of = {key: index for index, group in enumerate(groups) for key in group.layers}
            writer.close({METADATA: header_facts(
                layers=[(layer.key, layer.shape, group_of[layer.key]) for layer in layers], groups=entries,
                fingerprint="block", base={}, settings=settings.to_json(), pictures=len(drawn),
                held_out=sum(p.held_out for p in drawn))})
        ended = _clock()
        within = [_since(*pair, "summed_call") for i, pair in enumerate(zip(ticks.times, ticks.times[1:]), 1)
                  if i % args.steps]       # between two pictures the sums may be copied to disk
        return {**{name: sorted(pair[name] for pair in within)[len(within) // 2] for name in within[0]},
                **_since(started, ended, "capture"), **_since(ticks.times[-1], ended, "packing")}
    finally:
        kept.close()


class _Ticks(Progress):
    """Remembers when each call was done."""

    def __init__(self):
        super().__init__()
        self.times: list[tuple[float, float]] = []

    def advance(self, *_) -> None:
        """One call is done."""
        self.times.append(_clock())


def stage_code(args) -> dict:
    """Every layer of the block, side by side as quantize codes them."""
    path, spec = args.folder / CODED, make_spec("trellis", args.bits)
    layers = [layer for layer, _ in block_layers(args.checkpoint)][:args.layers]
    identity = f"{args.bits} {machine()['commit']} {(args.folder / GRAMS).stat().st_mtime_ns}"
    rows = [row for row in map(json.loads, path.read_text().splitlines() if path.exists() else ())
            if row["identity"] == identity]
    done, stoppable = {row["layer"] for row in rows}, Stoppable(Progress())
    started = time.monotonic()
    with open_source(args.checkpoint) as source, Calibration(args.folder / GRAMS) as calibration, \
            path.open("a") as spool:
        def work(layer) -> dict:
            began, used = time.monotonic(), time.thread_time()
            coded = encode_weight(source.load_float(layer.key), spec, key=layer.key, splits=layer.splits, device="cpu",
                                  gram=calibration.gram(layer.key))
            return {"layer": layer.key, "role": layer.role, "weights": layer.numel, "columns": layer.numel //
                    layer.shape[0], "seconds": round(time.monotonic() - began, 2), "identity": identity,
                    "cpu_seconds": round(time.thread_time() - used, 2), "bytes": coded.weight.nbytes}

        todo = [layer for layer in layers if layer.key not in done]
        for _, row in as_done(work, todo, worker_count("cpu"), stoppable):
            rows.append(row)
            spool.write(json.dumps(row) + "\n")
            spool.flush()
    weights = sum(row["weights"] for row in rows)
    return {"bits": 8 * sum(row["bytes"] for row in rows) / weights, "weights": weights, "layers": len(rows),
            "layer_seconds": round(sum(row["seconds"] for row in rows), 1),
            "layer_cpu_seconds": round(sum(row["cpu_seconds"] for row in rows), 1), "workers": worker_count("cpu"),
            "this_run_seconds": round(time.monotonic() - started, 1), "by_role": _by_role(rows)}


def _by_role(rows: list[dict]) -> dict[str, dict]:
    """Role -> layers, mean seconds of a core a layer, weights a second of a core."""
    found = {}
    for role in dict.fromkeys(row["role"] for row in rows):
        some = [row for row in rows if row["role"] == role]
        used = sum(row["cpu_seconds"] for row in some)
        found[role] = {"layers": len(some), "columns": max(row["columns"] for row in some),
                       "cpu_seconds_a_layer": round(used / len(some), 2),
                       "weights_a_second": round(sum(row["weights"] for row in some) / max(used, 1e-9))}
    return found


def stage_plan(args) -> dict:
    """The whole UNet's plan without data."""
    found = plan(args.checkpoint, bits=args.bits)
    write_picture(args.folder / "plan.svg", f"Plan of {found.source}", subtitle(found), list(marks(found)))
    return {"seconds": round(found.seconds, 1), "bits": found.bits, "file_bytes": found.file_bytes, "gap": found.gap,
            "text": describe(found), "table": mean_rates(found.layers)}


def mean_rates(rows) -> dict[str, dict[str, float]]:
    """Planned layers -> block (input_blocks.1 ...) -> role -> mean bits a weight, dense layers as 16."""
    sums: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        parts = row.layer.key.split(".")
        place = parts[2] if parts[2] == "middle_block" else ".".join(parts[2:4])
        total = sums.setdefault(place, {}).setdefault(row.layer.role, [0.0, 0.0])
        total[0] += row.layer.numel * getattr(row.spec, "bits", 16)
        total[1] += row.layer.numel
    return {place: {role: round(bits / weights, 3) for role, (bits, weights) in by_role.items()}
            for place, by_role in sums.items()}


def whole(capture_: dict, code: dict) -> dict:
    """The whole model on this machine, from the block's numbers: hours and bytes.

    Drawing and capturing ask the UNet DRAWN and LOOKED_AT times a picture; a call's time grows with its operations,
    that of sums and coding with weights. Coding shares its layers out among `workers` cores.
    """
    call = capture_["call_cpu_seconds"] * capture_["operations"]["whole"] / capture_["operations"]["front"]
    sums = capture_["sums_cpu_seconds_a_call"] * capture_["unet_weights"] / capture_["block_weights"]
    call, sums = call / capture_["threads"], sums / capture_["threads"]
    coding = code["layer_cpu_seconds"] / code["workers"] * capture_["unet_weights"] / code["weights"]
    return {"call_seconds": round(call, 1), "sums_seconds_a_call": round(sums, 1),
            "drawing_hours": round(PROMPTS * DRAWN * call / 3600, 2),
            "capture_hours": round(PROMPTS * LOOKED_AT * (call + sums) / 3600, 2),
            "coding_hours": round(coding / 3600, 2),
            "sums_bytes_by_weights": round(capture_["sums_bytes"] * capture_["unet_weights"]
                                           / capture_["block_weights"])}


def _coded(shapes: dict[str, tuple[int, ...]]):
    class Shapes:
        keys, shape = shapes.keys, shapes.__getitem__

    return [layer for layer in arch_layers(Shapes) if layer.component == "unet" and not layer.dense]


if __name__ == "__main__":
    sys.exit(main())
