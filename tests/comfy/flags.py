"""A server that keeps nothing between prompts, asked for the same picture again and again: usage flags.py HOST BASE;
prints one line `FOUND {json}`. `--cpu` excludes the flags for graphics memory; cases_memory.py has those.
"""
from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
from server import BASE, HOST, Browser, free_port, load, sampled, wait_until_up

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
            run = await browser.run(sampled(load("made.safetensors")))
            found["ends"].append(run["end"] + run["message"])
            found["loaded"].append("load" in run["executed"])
            found["resident"].append(resident_bytes(pid))
    return found


def main() -> None:
    port = free_port()
    command = [sys.executable, "main.py", "--cpu", *FLAGS, "--listen", "127.0.0.1", "--port", str(port),
               "--disable-auto-launch", "--base-directory", str(BASE),
               "--database-url", f"sqlite:///{BASE / 'user' / 'test.db'}"]
    with open(BASE / "server.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(command, cwd=HOST, stdout=log, stderr=subprocess.STDOUT)
    try:
        found = asyncio.run(story(f"http://127.0.0.1:{port}", server.pid))
    finally:
        server.send_signal(signal.SIGTERM) if os.name != "nt" else server.terminate()
        server.wait(30)
    pictures = sorted((BASE / "output").glob("vq*.png"))
    found["pictures"] = len({_pixels(path) for path in pictures})
    print("FOUND " + json.dumps(found))


def _pixels(path: Path) -> bytes:
    from PIL import Image

    return Image.open(path).tobytes()


if __name__ == "__main__":
    main()
