"""Jobs stopped in the middle of each stage, and what is left of them: usage server_cancel.py HOST BASE."""
from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import aiohttp
import server
from server import BASE, Browser, decompress, files, load, quantize, sampled

MODELS = BASE / "models"
PREVIEW = {"class_type": "PreviewAny", "inputs": {"source": ["load", 0]}}


def loading(mode: str) -> dict:
    loader = load("made.safetensors")
    return {"load": {**loader, "inputs": {**loader["inputs"], "memory_mode": mode}}, "look": PREVIEW}


def calibrate(name: str) -> dict:
    return {"load": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "whole.safetensors"}},
            "calibrate": {"class_type": "VQCalibrate", "inputs": {
                "model": ["load", 0], "clip": ["load", 1], "prompts": "a red fox\na blue bird", "prompt_file": "(none)",
                "preset": "base", "count": 2, "memory_gb": 0.5, "name": name, "width": 64, "height": 64, "steps": 2,
                "timesteps": 1, "cfg": 2.0}}}


CODING = {"make": quantize("trellis", 1.0, "stopped")}
WRITING = {"make": quantize("palette", 2.0, "written")}
DECODING = {"un": decompress("made.safetensors", "stopped", "fp32")}
DRAWING = calibrate("stopped")
SAMPLED = sampled(DRAWING["load"])
# case -> (job, where it is held, as in cancel_nodes.py); one that goes on with an earlier one's work comes after it
CASES = {
    "reading": (CODING, "stage|reading the source|0.5"),
    "coding": (CODING, "mark|coding|0.02"),
    "writing": (WRITING, "stage|writing the file|0.5"),
    "written": (WRITING, "call|vq_core.publish|Flushed.flush|1"),
    "continuing": (WRITING, "call|vq_core.spool|Spool._intact|20"),
    "loading": (loading("compressed"), "call|vq_core.container|Reader.raw|200"),
    "decoding at load": (loading("decoded"), "call|nodes.ops|Coded._assign|50"),
    "decompress": (DECODING, "stage|decompress|0.5"),
    "decompressed": (DECODING, "call|vq_core.publish|Flushed.flush|1"),
    "drawing": (DRAWING, "stage|drawing|0.2"),
    "capturing": (DRAWING, "call|vq_core.calibration.capture|input_rows|3"),
    "storing": (DRAWING, "call|vq_core.calibration.capture|_store|2"),
    "weighing": (DRAWING, "call|nodes.network|HostSensitivities.row_squares|20"),
    "backward": (DRAWING, "call|nodes.network|_weight_gradient|20"),
    "calibration written": (DRAWING, "stage|writing the file|0.5"),
}


class Stopper(Browser):
    """A browser that notes when it stops a job: by the clock, and in processor seconds of the server."""

    def __init__(self, session: aiohttp.ClientSession, url: str, pid: int):
        super().__init__(session, url)
        self._stat, self._asked = Path(f"/proc/{pid}/stat"), (0.0, 0.0)

    def now(self) -> tuple[float, float]:
        try:
            fields = self._stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            return time.monotonic(), time.monotonic()
        return time.monotonic(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def post(self, path: str, data: dict | None = None) -> dict:
        if path == "/interrupt":
            self._asked = self.now()
        return await super().post(path, data)

    async def timed(self, prompt: dict, point: str) -> dict:
        """Stop a job at a point -> as run(), and how long it took, what it left on the disk and in memory."""
        await self.hold(point)
        self._asked = (0.0, 0.0)
        found = await self.run(prompt)
        asked, now = self._asked, self.now()
        left = await self.look()
        await self.hold("")
        return {"end": found["end"], "message": found["message"], "clock": now[0] - asked[0],
                "seconds": now[1] - asked[1], "files": files(MODELS), **left}

    async def hold(self, point: str) -> None:
        found = await self.run({"hold": {"class_type": "HoldAt", "inputs": {"point": point}}})
        assert found["end"] == "execution_success", found

    async def free(self) -> None:
        """Have the host forget what it keeps; it does so after the next prompt at the latest."""
        await self.post("/free", {"unload_models": True, "free_memory": True})
        await self.look()

    async def look(self) -> dict:
        found = await self.run({"look": {"class_type": "Look", "inputs": {}}})
        assert found["end"] == "execution_success", found
        return json.loads(found["shown"]["look"]["text"][0])


async def story(url: str, pid: int) -> dict:
    """Stop every job in all its stages; those with a model of the host while it has that model."""
    async with aiohttp.ClientSession() as session:
        browser = Stopper(session, url, pid)
        await server.wait_until_up(browser)
        warm = [{"make": quantize("palette", 3.0, "made")}, sampled(load("made.safetensors")), SAMPLED]
        found = {"warm": [(await browser.run(prompt))["end"] for prompt in warm]}
        await browser.timed({"make": quantize("trellis", 1.0, "warm")}, "mark|coding|0.02")  # the tables of its codes
        wanted = {name: CASES[name] for name in sys.argv[3:] or CASES}
        for kind, drawn in (("alone", False), ("with a model", True)):
            await browser.free()
            if drawn:
                await browser.run(SAMPLED)
            found[kind] = {"before": await browser.look(), "files": files(MODELS), "cases": {
                name: await browser.timed(*case) for name, case in wanted.items() if (case[0] is DRAWING) == drawn}}
        await browser.free()
        found["after"] = await browser.look()
    return found


def main() -> None:
    port = server.free_port()
    os.environ |= {"VQPACK_TEST_MODELS": str(MODELS), "OMP_NUM_THREADS": "2"}       # two: layers are coded side by side
    process = server.start(port)
    try:
        found = asyncio.run(story(f"http://127.0.0.1:{port}", process.pid))
    finally:
        server.end(process)
    print("FOUND " + json.dumps(found))


if __name__ == "__main__":
    main()
