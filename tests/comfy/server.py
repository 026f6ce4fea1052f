"""A ComfyUI server on a folder of its own, and what a browser would do with it: usage server.py HOST BASE; prints one
line `FOUND {json}`. Not imported by pytest: it needs ComfyUI's own Python (aiohttp).
"""
from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import aiohttp

HOST, BASE = sys.argv[1], Path(sys.argv[2])
VQ_FOLDER = BASE / "models" / "vq_checkpoints"
# So long that only what hangs is cut off: the machine may be busy with other things.
START_SECONDS, PROMPT_SECONDS, END_SECONDS = 600, 900, 60
HELD = b"(held)"                            # as in hold_stage.py


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def start(port: int, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "main.py", "--cpu", *flags, "--listen", "127.0.0.1", "--port", str(port),
               "--disable-auto-launch", "--base-directory", str(BASE),
               "--database-url", f"sqlite:///{BASE / 'user' / 'test.db'}"]
    log = open(BASE / "server.log", "w", encoding="utf-8")
    return subprocess.Popen(command, cwd=HOST, stdout=log, stderr=subprocess.STDOUT)


def end(server: subprocess.Popen) -> None:
    server.terminate()
    try:
        server.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def quantize(method: str, bits: float, name: str) -> dict:
    return {"class_type": "VQQuantizeCheckpoint",
            "inputs": {"checkpoint": "tiny.safetensors", "bits": bits, "method": method, "text_encoder_bits": "6",
                       "name": name}}


def load(file: str, link: list | None = None) -> dict:
    inputs = {"file": file, "memory_mode": "compressed"}
    return {"class_type": "VQCheckpointLoader", "inputs": {**inputs, "file_name": link} if link else inputs}


def decompress(file: str, name: str = "", dtype: str = "source") -> dict:
    return {"class_type": "VQDecompressCheckpoint", "inputs": {"file": file, "dtype": dtype, "name": name}}


def hold(stage: str) -> dict:
    return {"hold": {"class_type": "HoldStage", "inputs": {"stage": stage}}}


def inspect(file: str, link: list | None = None) -> dict:
    return {"class_type": "VQInspect", "inputs": {"file": file, **({"file_name": link} if link else {})}}


def sampled(loader: dict, **more: dict) -> dict:
    sampler = {"model": ["load", 0], "positive": ["cond", 0], "negative": ["cond", 0], "latent_image": ["empty", 0],
               "seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return {**more, "load": loader, "cond": {"class_type": "ZeroConditioning", "inputs": {}},
            "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
            "sample": {"class_type": "KSampler", "inputs": sampler},
            "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["load", 2]}},
            "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "vq"}}}


class Browser:
    """One websocket and what came over it."""

    def __init__(self, session: aiohttp.ClientSession, url: str):
        self._session, self._url = session, url

    async def get(self, path: str) -> dict:
        async with self._session.get(self._url + path) as answer:
            return await answer.json()

    async def status(self, path: str) -> int:
        async with self._session.get(self._url + path) as answer:
            return answer.status

    async def post(self, path: str, data: dict | None = None) -> dict:
        async with self._session.post(self._url + path, json=data or {}) as answer:
            text = await answer.text()
            return json.loads(text) if text.startswith("{") else {}

    async def stop(self, prompt: dict, stage: str) -> dict:
        """Run a prompt and interrupt it once something of this stage is done."""
        held = await self.run(hold(stage))
        stopped = await self.run(prompt)
        released = await self.run(hold(""))
        assert held["end"] == released["end"] == "execution_success", (held, released)
        return stopped

    async def run(self, prompt: dict) -> dict:
        """Queue a prompt -> {"end", "message", "nodes": {node: progress values}, "texts"}; a held stage is stopped.

        Each run has a socket of its own name, so that nothing meant for an earlier one can reach it.
        """
        out = {"end": "", "message": "", "nodes": {}, "texts": 0, "executed": [],
               "shown": {}}
        name = uuid.uuid4().hex
        async with self._session.ws_connect(f"{self._url}/ws?clientId={name}", max_msg_size=0) as socket_:
            answer = await self.post("/prompt", {"prompt": prompt, "client_id": name})
            if "prompt_id" not in answer:
                return {**out, "end": "refused", "message": json.dumps(answer)[:2000]}
            end = time.monotonic() + PROMPT_SECONDS
            while time.monotonic() < end:
                message = await socket_.receive(timeout=PROMPT_SECONDS)
                if message.type is aiohttp.WSMsgType.BINARY:
                    out["texts"] += message.data[:4] == b"\0\0\0\3"
                    if HELD in message.data:
                        await self.post("/interrupt")
                    continue
                event = json.loads(message.data)
                data = event.get("data", {})
                if event["type"] == "progress":
                    out["nodes"].setdefault(data["node"], []).append(data["value"])
                if event["type"] == "executing" and data.get("node"):
                    out["executed"].append(data["node"])
                if event["type"] == "executed" and data.get("output"):
                    out["shown"][data["node"]] = data["output"]
                if event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                    return {**out, "end": event["type"], "message": data.get("exception_message", "")}
        return {**out, "end": "timeout"}


def files(folder: Path = VQ_FOLDER) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def seen(info: dict, node: str, widget: str):
    return info[node]["input"]["required"][widget]


async def story(url: str) -> dict:
    """First quantize, load and sample in one prompt; the same again; then an interrupted run; then errors."""
    found = {}
    async with aiohttp.ClientSession() as session:
        browser = Browser(session, url)
        await wait_until_up(browser)
        info = await browser.get("/object_info")
        found["nodes"] = {name: info[name]["display_name"] for name in info if name.startswith("VQ")}
        found["inputs"] = {name: info[name]["input_order"] for name in found["nodes"]}
        found["tooltips"] = all(len(spec) > 1 and spec[1].get("tooltip") for name in found["nodes"]
                                for group in ("required", "optional")
                                for spec in info[name]["input"].get(group, {}).values())
        found["aliases"] = {name: info[name].get("search_aliases", []) for name in found["nodes"]}
        found["help"] = [name for name in found["nodes"] if await browser.status(f"/extensions/vq-pack/docs/{name}.md")
                         != 200]
        found["empty_list"] = seen(info, "VQCheckpointLoader", "file")
        first = sampled(load("(no VQ file found)", ["make", 0]), make=quantize("palette", 3.0, "made"))
        found["first"] = await browser.run(first)
        found["files"] = files()
        found["again"] = (await browser.run(first))["executed"]
        info = await browser.get("/object_info")
        found["list"] = seen(info, "VQCheckpointLoader", "file")
        found["sources"] = seen(info, "VQQuantizeCheckpoint", "checkpoint")
        found["stopped"] = await browser.stop({"make": quantize("palette", 4.0, "stopped")}, "coding")
        found["files_after_stop"] = files()
        found["by_name"] = await browser.run(sampled(load("made.safetensors")))
        found["outside"] = await browser.run({"make": quantize("palette", 3.0, "../outside")})
        found["no_such_rate"] = await browser.run({"make": quantize("trellis", 7.0, "never")})
        found["gone"] = await browser.run(sampled(load("gone.safetensors")))
        (VQ_FOLDER / "bad.safetensors").write_bytes((VQ_FOLDER / "made.safetensors").read_bytes()[:1_000_000])
        found["damaged"] = await browser.run(sampled(load("bad.safetensors")))
        found.update(await of_files(browser))
        found["alive"] = (await browser.run(sampled(load("made.safetensors"))))["end"]
    return found


async def of_files(browser: Browser) -> dict:
    """Decompress and Inspect, and what goes wrong with files."""
    found, checkpoints = {}, BASE / "models" / "checkpoints"
    prompt = {"un": decompress("made.safetensors")}
    found["decompressed"] = await browser.run(prompt)
    found["checkpoints"] = files(checkpoints)
    found["decompressed_again"] = (await browser.run(prompt))["executed"]
    result = checkpoints / "made-decompressed.safetensors"
    before = result.stat().st_mtime_ns
    found["decompressed_as_named"] = await browser.run({"un": decompress("made.safetensors", "sub/own", "bf16")})
    found["stock"] = await browser.run(sampled({"class_type": "CheckpointLoaderSimple",
                                                "inputs": {"ckpt_name": result.name}}))
    found["there"] = await browser.run({"un": decompress("made.safetensors", result.name)})       # another node input
    found["kept"] = result.stat().st_mtime_ns == before
    result.unlink()
    found["made_again"] = (await browser.run(prompt))["executed"]
    found["checkpoints_after"] = files(checkpoints)
    decoding = {"un": decompress("made.safetensors", "stop", "fp32")}
    found["stopped_decompress"] = await browser.stop(decoding, "decompress")
    found["checkpoints_after_stop"] = files(checkpoints)
    found["inspected"] = await browser.run({"look": inspect("made.safetensors")})
    found["two_loaders"] = await browser.run(two_loaders("made.safetensors"))
    newer = (VQ_FOLDER / "made.safetensors").read_bytes().replace(b'"vqpack.version":"1"', b'"vqpack.version":"9"', 1)
    (VQ_FOLDER / "newer.safetensors").write_bytes(newer)
    (VQ_FOLDER / "blocked").write_bytes(b"")
    (checkpoints / "blocked").write_bytes(b"")
    found["newer"] = await browser.run(sampled(load("newer.safetensors")))
    found["newer_inspected"] = await browser.run({"look": inspect("newer.safetensors")})
    found["newer_decompressed"] = await browser.run({"un": decompress("newer.safetensors")})
    found["damaged_inspected"] = await browser.run({"look": inspect("bad.safetensors")})
    found["damaged_decompressed"] = await browser.run({"un": decompress("bad.safetensors")})
    found["not_ours"] = await browser.run({"un": decompress("made.safetensors"), "look": inspect("?", ["un", 0])})
    found["blocked"] = await browser.run({"make": quantize("palette", 3.0, "blocked/x")})
    found["blocked_decompress"] = await browser.run({"un": decompress("made.safetensors", "blocked/x")})
    (VQ_FOLDER / "made.safetensors").rename(VQ_FOLDER / "away")
    found["deleted"] = await browser.run({"look": inspect("made.safetensors")})
    (VQ_FOLDER / "away").rename(VQ_FOLDER / "made.safetensors")
    return found


def two_loaders(file: str) -> dict:
    prompt = sampled(load(file))
    other = sampled({"class_type": "VQDiffusionModelLoader", "inputs": {"file": file, "memory_mode": "decoded"}})
    return {**prompt, "load2": other["load"],
            "sample2": {**other["sample"], "inputs": {**other["sample"]["inputs"], "model": ["load2", 0]}},
            "decode2": {**other["decode"], "inputs": {"samples": ["sample2", 0], "vae": ["load", 2]}},
            "save2": {**other["save"], "inputs": {"images": ["decode2", 0], "filename_prefix": "two"}}}


async def wait_until_up(browser: Browser) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            await browser.get("/system_stats")
            return
        except (aiohttp.ClientError, json.JSONDecodeError):
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.5)


def told(one_story) -> dict:
    """What a story(url) found at a server of its own, which ends with it."""
    port = free_port()
    server = start(port)
    try:
        return asyncio.run(one_story(f"http://127.0.0.1:{port}"))
    finally:
        end(server)


def main() -> None:
    found = told(story)
    log = (BASE / "server.log").read_text(encoding="utf-8", errors="replace")
    found["import_failed"] = "Cannot import" in log or "IMPORT FAILED" in log
    print("FOUND " + json.dumps(found))


if __name__ == "__main__":
    main()
