"""A server that keeps nothing between prompts, asked for the same picture again and again: usage flags.py HOST BASE;
prints one line `FOUND {json}`. `--cpu` excludes the flags for graphics memory; cases_memory.py has those.
"""
from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import aiohttp
from server import BASE, Browser, end, free_port, load, sampled, start, wait_until_up

FLAGS = ("--cache-none", "--disable-dynamic-vram", "--disable-smart-memory")
RUNS = 5


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in use now; 0 where /proc does not tell."""
    path = Path(f"/proc/{pid}/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.is_file() else 0


async def story(url: str, pid: int) -> dict:
    found = {"ends": [], "loaded": [], "resident": []}
    async with aiohttp.ClientSession() as session:
        browser = Browser(session, url)
        await wait_until_up(browser)
        for _ in range(RUNS):
            run = await browser.run(sampled(load("tiny-vq.safetensors")))
            found["ends"].append(run["end"] + run["message"])
            found["loaded"].append("load" in run["executed"])
            found["resident"].append(resident_bytes(pid))
    return found


def main() -> None:
    port = free_port()
    server = start(port, *FLAGS)
    try:
        found = asyncio.run(story(f"http://127.0.0.1:{port}", server.pid))
    finally:
        end(server)
    pictures = sorted((BASE / "output").glob("vq*.png"))
    found["pictures"] = len({_pixels(path) for path in pictures})
    print("FOUND " + json.dumps(found))


def _pixels(path: Path) -> bytes:
    from PIL import Image

    return Image.open(path).tobytes()


if __name__ == "__main__":
    main()
