"""A server under `--cache-none --disable-dynamic-vram --disable-smart-memory` loads anew each time and never grows."""
from __future__ import annotations

import json
import os
import subprocess

import pytest

from .conftest import HERE, ROOT, environment, host_python
from .test_server import CONDITIONING


@pytest.fixture(scope="module")
def found(comfyui, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flags")
    for name in ("models/vq_checkpoints", "models/checkpoints", "custom_nodes/testing", "output", "user"):
        (folder / name).mkdir(parents=True)
    os.link(files / "tiny-vq.safetensors", folder / "models" / "vq_checkpoints" / "made.safetensors")
    (folder / "custom_nodes" / "testing" / "__init__.py").write_text(CONDITIONING, encoding="utf-8")
    (folder / "custom_nodes" / "vq-pack").symlink_to(ROOT, target_is_directory=True)
    command = [host_python(), str(HERE / "flags.py"), str(comfyui), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=folder, check=False,
                          timeout=400)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    log = (folder / "server.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0 and lines, f"{done.stderr[-3000:]}\n{log[-3000:]}"
    return json.loads(lines[-1][6:])


def test_every_prompt_loads_the_file_and_gives_one_picture(found):
    assert set(found["ends"]) == {"execution_success"} and all(found["loaded"])
    assert found["pictures"] == 1


def test_memory_does_not_grow_from_prompt_to_prompt(found):
    if not found["resident"][0]:
        pytest.skip("no /proc here: how much memory the server uses is not known")
    settled, last = found["resident"][1], found["resident"][-1]
    assert last - settled < 40 << 20        # one model that stayed would be 60 MB a prompt
