"""A browser on a ComfyUI server. Not part of the gate.

Runs where $PLAYWRIGHT_PYTHON names a Python with playwright; the browser is $CHROMIUM, else /usr/bin/chromium; pictures
of the page go to $SCREENSHOTS, else nowhere. docs/interface.md has the command.
"""
from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from ..comfy.conftest import environment, host_path, host_python, usable

HERE = Path(__file__).resolve().parent
START_SECONDS, STORY_SECONDS, STOP_SECONDS = 300, 900, 60


@pytest.fixture(scope="session")
def browser() -> tuple[str, str]:
    """A Python with playwright, and the browser it drives."""
    python, chromium = os.environ.get("PLAYWRIGHT_PYTHON"), os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not python:
        pytest.skip("set $PLAYWRIGHT_PYTHON to a Python with playwright (docs/interface.md)")
    if not Path(chromium).exists():
        pytest.skip(f"no browser at {chromium}: set $CHROMIUM")
    return python, chromium


def seen(browser: tuple[str, str], story: str, base: Path, renderer: str, *flags: str) -> dict:
    """What a story (a script of this folder) saw of a server on this base folder, started with these flags."""
    shots = Path(os.environ.get("SCREENSHOTS") or base.parent / "shots")
    shots.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    server = start(usable(host_path("COMFYUI_PATH", "ComfyUI")), base, url, flags)
    try:
        command = [browser[0], str(HERE / story), url, str(base), str(shots), browser[1], str(server.pid), renderer]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=STORY_SECONDS)
    finally:
        server.terminate()
        server.wait(STOP_SECONDS)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-3000:]
    return {"renderer": renderer, **json.loads(lines[-1][6:])}


def start(host: Path, base: Path, url: str, flags: tuple[str, ...]) -> subprocess.Popen:
    """A server that answers."""
    command = [host_python(), "main.py", "--cpu", *flags, "--listen", "127.0.0.1", "--port", url.rpartition(":")[2],
               "--disable-auto-launch", "--base-directory", str(base),
               "--database-url", f"sqlite:///{base / 'user' / 'test.db'}"]
    with open(base / "server.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(command, cwd=host, stdout=log, stderr=subprocess.STDOUT, env=environment())
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/system_stats", timeout=5).read()
            return server
        except OSError:
            time.sleep(0.5)
    server.kill()
    raise AssertionError((base / "server.log").read_text(encoding="utf-8")[-3000:])
