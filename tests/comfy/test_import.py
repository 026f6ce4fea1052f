"""Importing the pack: ComfyUI's loader takes it, calls nothing of torch.cuda for it and opens no socket."""
from __future__ import annotations

import json
import subprocess

from .conftest import ROOT, environment, host_python

CALLING = """
import socket
import torch

torch.cuda.is_available()
socket.socket().close()
NODE_CLASS_MAPPINGS = {}
"""


def imported(host, pack, folder) -> dict:
    script = ROOT / "benchmarks" / "import_time.py"
    command = [host_python(), str(script), str(host), "--runs", "1", "--pack", str(pack)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=folder, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[-1][6:])


def test_import_calls_no_cuda_and_no_network(comfyui, tmp_path):
    found = imported(comfyui, ROOT, tmp_path)
    assert found["nodes"] >= 7 and found["cuda_calls"] == [] and found["sockets"] == 0


def test_the_counter_counts(comfyui, tmp_path):
    (tmp_path / "calling").mkdir()
    (tmp_path / "calling" / "__init__.py").write_text(CALLING, encoding="utf-8")
    found = imported(comfyui, tmp_path / "calling", tmp_path)
    assert "torch.cuda.is_available" in found["cuda_calls"] and found["sockets"] == 1
