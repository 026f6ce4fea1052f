"""The interface as a person uses it: a headless browser on a real ComfyUI, mouse and keyboard, both renderers.

Not part of the gate. Runs where $PLAYWRIGHT_PYTHON names a Python with playwright; the browser is $CHROMIUM, else
/usr/bin/chromium; pictures of the page go to $SCREENSHOTS, else nowhere. docs/interface.md has the command.
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

from ..comfy.conftest import environment, host_path, host_python, make_base, make_tiny, usable
from ..comfy.test_server import CONDITIONING

HERE = Path(__file__).resolve().parent
RENDERERS = ("classic", "nodes2")
START_SECONDS, STORY_SECONDS, STOP_SECONDS = 300, 900, 60
CANCELLED = 2.0                            # seconds of the server, the promise on the tiny checkpoint


@pytest.fixture(scope="module")
def browser():
    python, chromium = os.environ.get("PLAYWRIGHT_PYTHON"), os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not python:
        pytest.skip("set $PLAYWRIGHT_PYTHON to a Python with playwright (docs/interface.md)")
    if not Path(chromium).exists():
        pytest.skip(f"no browser at {chromium}: set $CHROMIUM")
    return python, chromium


@pytest.fixture(scope="module", params=RENDERERS)
def found(request, browser, tmp_path_factory):
    """What a person saw in one renderer."""
    host = usable(host_path("COMFYUI_PATH", "ComfyUI"))
    folder = tmp_path_factory.mktemp(request.param)
    base = make_base(folder / "base", {"testing": CONDITIONING}, checkpoints=make_tiny(folder / "tiny.safetensors"))
    shots = Path(os.environ.get("SCREENSHOTS") or folder / "shots")
    shots.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    server = start(host, base, url)
    try:
        command = [browser[0], str(HERE / "person.py"), url, str(base), str(shots), browser[1], str(server.pid),
                   request.param]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=STORY_SECONDS)
    finally:
        server.terminate()
        server.wait(STOP_SECONDS)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-3000:]
    return {"renderer": request.param, **json.loads(lines[-1][6:])}


def start(host: Path, base: Path, url: str) -> subprocess.Popen:
    """A server that answers."""
    command = [host_python(), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", url.rpartition(":")[2],
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


def test_it_is_the_renderer_that_was_asked_for(found):
    assert found["vue"] == (found["renderer"] == "nodes2")


def test_nothing_of_the_pack_failed_in_the_page(found):
    assert found["log"] == []


def test_one_click_from_a_loader_to_a_picture(found):
    """Right click, menu item, End on the slider, Quantize, Use it, Run: six interactions."""
    way = found["to_a_picture"]
    assert way["focused"] == "Quantize" and way["said"] == "8 bits"
    assert way["end"] == "execution_success" and way["pictures"] == 1
    assert way["loaders"] == way["model_from"][:1] and way["corner"] == 0


def test_the_predicted_size_is_the_files(found):
    way = found["to_a_picture"]
    assert f"{way['bytes'] / 1e6:.1f} MB of 126.1 MB" in way["at_8"]
    assert "not measured on this checkpoint" in way["first"]


def test_the_report_is_shown_and_saved(found):
    way = found["to_a_picture"]
    assert "palette 8" in way["report"] and "Weight error" in way["report"]
    assert way["download"][0].endswith("-report.html") and way["download"][1] > 10_000


def test_cancel(found):
    stopped = found["cancelled"]
    assert stopped["seconds"] < CANCELLED and "half-written" in stopped["text"]
    assert stopped["answered"]                          # the server answers other requests during a job
    assert not [name for name in stopped["left"] if name.endswith((".safetensors", ".part"))]


def test_a_saved_workflow_loads_as_it_was_and_exports_the_same(found):
    node = found["in_a_node"]
    expected = {"checkpoint": "tiny.safetensors", "bits": 2.5, "method": "trellis", "text_encoder_bits": "8",
                "name": "mine", "calibration": "(none)", "plan": "(none)"}
    assert node["loaded"].items() >= expected.items() and node["prompt"] == expected
    assert node["exported"] == sorted(expected)


def test_keyboard_presets_copy_and_undo(found):
    node = found["in_a_node"]
    assert node["right"] == 3 and node["tiny"] == node["pasted"] == [2, "4"] and node["panels"] == 2
    assert node["undone"] == 3 and node["shown"] == "3"                 # the paste, then the preset


def test_values_survive_a_subgraph(found):
    node = found["in_a_subgraph"]
    assert node["after"] == [node["before"]] and ":" in node["ids"][0]


def test_values_survive_a_reload(found):
    assert found["reloaded"]["before"]["bits"] == 6 and found["reloaded"]["after"] == found["reloaded"]["before"]
