"""The published archive in a clean base folder, without git and without a compiler: usage server_packed.py HOST BASE.

As server.py; PATH holds nothing, so no program can be started by name.
"""
from __future__ import annotations

import importlib.metadata
import json
import os

import aiohttp
import server
from server import BASE, Browser, decompress, files, inspect, load, quantize, sampled
from server_calibrate import as_prompt


async def story(url: str) -> dict:
    """Quantize, load, sample, inspect and decompress."""
    async with aiohttp.ClientSession() as session:
        browser = Browser(session, url)
        await server.wait_until_up(browser)
        info = await browser.get("/object_info")
        made = {"make": quantize("palette", 3.0, "made")}
        canvas = BASE / "custom_nodes" / "vqpack" / "vq_core" / "configs" / "canvas.json"
        return {"canvas": as_prompt(json.loads(canvas.read_text(encoding="utf-8")), info),
                "nodes": sorted(name for name in info if name.startswith("VQ")),
                "sampled": await browser.run(sampled(load("(no VQ file found)", ["make", 0]), **made)),
                "trellis": await browser.run({"make": quantize("trellis", 2.0, "trellis")}),
                "inspected": await browser.run({"look": inspect("made.safetensors")}),
                "plain": await browser.run({"un": decompress("made.safetensors")}), "files": files()}


def installed() -> dict[str, str]:
    return {found.name: found.version for found in importlib.metadata.distributions()}


def main() -> None:
    before, empty = installed(), BASE / "no programs"
    empty.mkdir()
    os.environ["PATH"] = str(empty)
    for name in ("CC", "CXX", "CUDA_HOME", "TRITON_CACHE_DIR"):
        os.environ.pop(name, None)
    found = server.told(story)
    log = (BASE / "server.log").read_text(encoding="utf-8", errors="replace")
    print("FOUND " + json.dumps({**found, "import_failed": "Cannot import" in log or "IMPORT FAILED" in log,
                                 "added": sorted(set(installed().items()) ^ set(before.items())),
                                 "pictures": len(list((BASE / "output").glob("vq*.png")))}))


if __name__ == "__main__":
    main()
