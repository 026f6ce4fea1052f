"""A real ComfyUI at SDXL's full size: how long after a stop does the work end, and what is left of it?

usage: python cancel.py COMFYUI CHECKPOINT SMALL FOLDER [--times 4] [--only reading,...]    (with ComfyUI's own Python)

CHECKPOINT: benchmarks/make_checkpoint.py makes one of SDXL's exact shapes. SMALL: a whole vqpack file, e.g. of
benchmarks/synthetic_file.py --parts unet,te1,te2,vae. FOLDER: on the same disk, with 30 GB free; a base folder for
ComfyUI is made there and deleted. A server on the CPU gets a job several times, is told to stop (POST /interrupt) in
the middle of a stage, and is timed until it says that it stopped: seconds, and processor time of all its threads. Then
it is told to free memory, and its resident memory and the files of the job are looked at. For comparison: how long the
longest layer takes there. Results go to benchmarks/results/cancel.json, stage by stage.
"""
from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from alias import RESULTS, ROOT, load_vqpack, machine

DENSE = {"vqpack_plan": 1, "unet": {"kind": "dense"}}      # codes nothing: at the writing soon, and for long
LARGE = ("blocks.7.1", "blocks.8.1", "middle_block.1", "output_blocks.")     # where layers have up to 13 M weights
TEXT = b"\0\0\0\3"                         # the host's binary event of a node's text
START, PATIENCE, REST = 300, 1200, 6.0     # seconds: to start, for a job, to free memory
ENDS = ("execution_success", "execution_error", "execution_interrupted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("small", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", default=",".join(STAGES))
    args = parser.parse_args()
    out = RESULTS / "cancel.json"
    rows = json.loads(out.read_text()) if out.exists() else {}
    rows |= {"machine": machine(), "settings": {"threads": args.threads, "checkpoint_bytes": size(args.checkpoint),
                                                "small_bytes": size(args.small)}}
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory(dir=args.folder) as base, running(args, Path(base)) as server:
            rows[name] = asyncio.run(STAGES[name](server, args.times))
        out.write_text(json.dumps(rows, indent=1) + "\n")
        print(name, json.dumps(rows[name]), flush=True)


def size(path: Path) -> int:
    return path.stat().st_size


@contextmanager
def running(args, base: Path) -> Iterator[Server]:
    """ComfyUI on a base folder with this pack and the two files."""
    models = base / "models"
    for name in ("checkpoints", "vq_checkpoints", "vqpack"):
        (models / name).mkdir(parents=True)
    for name in ("custom_nodes", "input", "output", "temp", "user"):
        (base / name).mkdir()
    os.link(args.checkpoint, models / "checkpoints" / "base.safetensors")
    os.link(args.small, models / "vq_checkpoints" / "small.safetensors")
    (models / "vqpack" / "dense.vqplan.json").write_text(json.dumps(DENSE))
    (base / "custom_nodes" / "vq-pack").symlink_to(ROOT, target_is_directory=True)
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory",
               str(base), "--disable-auto-launch", "--database-url", f"sqlite:///{base / 'user' / 'bench.db'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1",
                   "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}         # or the C library keeps what was freed
    with open(base / "server.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=args.comfyui, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield Server(f"http://127.0.0.1:{port}", process.pid, models)
    except BaseException:
        print((base / "server.log").read_text(errors="replace")[-3000:], file=sys.stderr)
        raise
    finally:
        process.terminate()
        process.wait()


class Server:
    """A running ComfyUI as a browser and as the operating system see it (Linux)."""

    def __init__(self, url: str, pid: int, models: Path):
        self.url, self.models, self._proc = url, models, Path(f"/proc/{pid}")

    async def up(self, session: aiohttp.ClientSession) -> None:
        """Wait until it answers."""
        end = time.monotonic() + START
        while time.monotonic() < end:
            try:
                async with session.get(self.url + "/system_stats"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.5)
        raise SystemExit("ComfyUI did not start")

    async def resident(self, session: aiohttp.ClientSession) -> int:
        """Resident bytes once it has freed what it may."""
        for _ in range(2):                 # the first may come while it still counts the job as running
            await session.post(self.url + "/free", json={"unload_models": True, "free_memory": True})
            await asyncio.sleep(REST)
        return int((self._proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def processor(self) -> float:
        """Processor seconds of all threads so far."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def files(self) -> dict[str, int]:
        """What lies in the models folder -> bytes."""
        found = (path for path in self.models.rglob("*") if path.is_file())
        return {path.relative_to(self.models).as_posix(): path.stat().st_size for path in sorted(found)}

    async def run(self, session: aiohttp.ClientSession, prompt: dict, ready: Callable[[str], bool] | None = None,
                  wait: float = 0.0) -> dict:
        """Queue a prompt; stop it `wait` seconds after ready(text of a node, or "executing NODE").

        -> {"end", "text": what stood there at the stop, "seconds" and "processor_seconds" since it, "stages": text ->
        second at which its first line was new}
        """
        name, stages, stop, stopped = uuid.uuid4().hex, {}, None, {}
        async with session.ws_connect(f"{self.url}/ws?clientId={name}", max_msg_size=0) as socket_:
            started, text = time.monotonic(), ""

            async def interrupt() -> None:
                await asyncio.sleep(wait)
                stopped.update(text=text, clock=time.monotonic(), processor=self.processor())
                await session.post(self.url + "/interrupt", json={})

            await session.post(self.url + "/prompt", json={"prompt": prompt, "client_id": name})
            while True:
                message = await socket_.receive(timeout=PATIENCE)
                event = as_event(message)
                if event.get("type") in ENDS:
                    break
                if "text" not in event:
                    continue
                text = event["text"]
                stages.setdefault(text.split("\n")[0].split(",")[0], round(time.monotonic() - started, 2))
                if stop is None and ready is not None and ready(text):
                    stop = asyncio.create_task(interrupt())
            found = {"end": event["type"], "stages": stages, "all_seconds": round(time.monotonic() - started, 2)}
            if not stopped:
                return found | {"message": event["data"].get("exception_message", "")}
            return found | {"text": stopped["text"], "seconds": round(time.monotonic() - stopped["clock"], 2),
                            "processor_seconds": round(self.processor() - stopped["processor"], 2)}


def as_event(message) -> dict:
    """A message of the socket -> {"type", "data"}, with "text" where a node says something or begins."""
    if message.type is aiohttp.WSMsgType.BINARY:
        if message.data[:4] != TEXT:
            return {}
        length = int.from_bytes(message.data[4:8], "big")
        return {"text": message.data[8 + length:].decode()}
    event = json.loads(message.data)
    if event["type"] == "executing" and event["data"].get("node"):
        event["text"] = f"executing {event['data']['node']}"
    return event


def quantize(**inputs) -> dict:
    return {"make": {"class_type": "VQQuantizeCheckpoint", "inputs": {
        "checkpoint": "base.safetensors", "bits": 3.0, "method": "trellis", "text_encoder_bits": "16", "name": "made",
        **inputs}}}


def load(mode: str, keep: int = 0) -> dict:
    """keep: makes it another node for the host's cache."""
    return {"class_type": "VQCheckpointLoader", "inputs": {"file": "small.safetensors", "memory_mode": mode,
                                                           "keep_decoded": keep}}


def begins(*words: str) -> Callable[[str], bool]:
    """Whether a text begins with the first word and, where there are more, holds one of them."""
    return lambda text: text.startswith(words[0]) and (not words[1:] or any(word in text for word in words[1:]))


async def stops(server: Server, prompt: dict, ready, waits: list[float], warm: dict | None = None) -> dict:
    """Stop a prompt after each of `waits` -> what happened. warm: run to its end first, for what stays in memory."""
    async with aiohttp.ClientSession() as session:
        await server.up(session)
        whole = await server.run(session, warm) if warm else None
        before, files = await server.resident(session), server.files()
        found = [await server.run(session, prompt, ready, wait) for wait in waits]
        after = await server.resident(session)
    left = {name: nbytes for name, nbytes in server.files().items() if files.get(name) != nbytes}
    kept = ("end", "text", "seconds", "processor_seconds", "message")
    rows = [{name: one[name] for name in kept if name in one} | {"after": round(wait, 2)}
            for one, wait in zip(found, waits, strict=True)]
    return {"longest_seconds": max(one["seconds"] for one in rows if one["end"] == ENDS[2]), "stops": rows,
            "resident_before": before, "resident_after": after, "left": left,
            **({"whole": {name: whole[name] for name in ("end", "stages", "all_seconds")}} if whole else {})}


async def reading(server: Server, times: int) -> dict:
    """SHA-256 of the checkpoint."""
    found = await stops(server, quantize(), begins("reading"), [0.3 + 0.7 * i for i in range(times)])
    return found | {"layer_seconds": hash_seconds()}


async def coding(server: Server, times: int) -> dict:
    """Large layers, in trellis codes at 3 bits; each run goes on with what the one before had coded."""
    found = await stops(server, quantize(), begins("coding", *LARGE), [1.3 + 1.9 * i for i in range(times)])
    return found | {"layer_seconds": coding_seconds()}


async def writing(server: Server, times: int) -> dict:
    """6.9 GB that were not coded."""
    prompt = quantize(plan="dense.vqplan.json")
    return await stops(server, prompt, begins("writing"), [0.2 + 1.5 * i for i in range(times)])


async def loading(server: Server, times: int, mode: str = "compressed") -> dict:
    """Somewhere in the whole time that the loader takes."""
    look = {"class_type": "PreviewAny", "inputs": {"source": ["load", 0]}}
    *first, job = ({"load": load(mode, keep), "look": look} for keep in (64, 128, 0))
    took = float(PATIENCE)
    async with aiohttp.ClientSession() as session:
        await server.up(session)
        for prompt in first:               # twice: the first reads the file from the disk
            whole = (await server.run(session, prompt))["stages"]
            took = min(took, whole["executing look"] - whole["executing load"])
    waits = [took * (i + 0.5) / times for i in range(times)]
    return await stops(server, job, begins("executing load"), waits) | {"whole_seconds": round(took, 2)}


async def loading_decoded(server: Server, times: int) -> dict:
    """The same where each weight is decoded."""
    return await loading(server, times, "decoded")


async def drawing(server: Server, times: int) -> dict:
    """Calibrate (VQ) on the checkpoint itself, in the middle of calls of the UNet on a picture of 256 x 256."""
    small = {"width": 256, "height": 256, "steps": 4, "timesteps": 1, "cfg": 1.0, "count": 2}
    dense = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "base.safetensors"}}
    prompt = {"load": dense, "calibrate": {"class_type": "VQCalibrate", "inputs": {
        "model": ["load", 0], "clip": ["load", 1], "prompts": "a red fox\na blue bird", "prompt_file": "(none)",
        "preset": "base", "memory_gb": 1.0, "name": "made", "sensitivity": False, **small}}}
    return await stops(server, prompt, begins("drawing"), [8.0 + 1.7 * i for i in range(times)])


def hash_seconds() -> float:
    """SHA-256 of the largest layer, 29 M weights in 16 bits."""
    import hashlib

    data = bytes(2 * 2560 * 1280 * 9)
    started = time.monotonic()
    hashlib.sha256(data)
    return round(time.monotonic() - started, 3)


def coding_seconds() -> dict[str, float]:
    """The largest linear layer and the largest convolution, each on one thread, as two of them are side by side."""
    import torch

    load_vqpack()
    from vqpack.vq_core.encode import encode_weight
    from vqpack.vq_core.spec import TrellisSpec

    torch.set_num_threads(1)
    encode_weight(torch.randn(64, 64), TrellisSpec(3.0))       # compiles
    took = {}
    for shape in ((10240, 1280), (1280, 2560, 3, 3)):
        weight, started = torch.randn(shape), time.monotonic()
        encode_weight(weight, TrellisSpec(3.0))
        took["x".join(map(str, shape))] = round(time.monotonic() - started, 2)
    return took


STAGES = {"reading": reading, "coding": coding, "writing": writing, "loading": loading,
          "loading_decoded": loading_decoded, "drawing": drawing}

if __name__ == "__main__":
    main()
