"""A writing process killed at random moments: never an incomplete file under the final name, and the next run works."""
from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from vqpack.vq_core.verify import verify_file

CHILD = """
import importlib.util, os, sys
def load(name, path, **options):
    spec = importlib.util.spec_from_file_location(name, path, **options)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
root, folder = sys.argv[1:]
load("vqpack", os.path.join(root, "__init__.py"), submodule_search_locations=[root])
samples = load("format_samples", os.path.join(root, "tests", "format", "samples.py"))
from pathlib import Path
print("ready", flush=True)
for seed in range(10**9):
    samples.write_file(Path(folder), seed=seed % 3, overwrite=True, fingerprint=str(seed % 3))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_kill_at_random_moments(tmp_path, repository):
    random.seed(1)
    finished = 0
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(repository), str(tmp_path)], stdout=subprocess.PIPE,
                                 env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert child.stdout.readline().strip() == b"ready"
        for _ in range(16):                # stop, look, go on: a kill at any of these moments would leave this
            time.sleep(random.uniform(0.005, 0.06))
            child.send_signal(signal.SIGSTOP)
            time.sleep(0.002)
            finished += check(tmp_path)
            child.send_signal(signal.SIGCONT)
        child.kill()
        child.wait()
        finished += check(tmp_path)
        assert set(os.listdir(tmp_path)) <= {"model.safetensors" + ending for ending in
                                             ("", ".part", ".spool", ".spool.journal")}
    assert finished > 0
    from format_samples import write_file

    write_file(tmp_path, overwrite=True, fingerprint="0")
    assert os.listdir(tmp_path) == ["model.safetensors"] and check(tmp_path)


def check(folder) -> int:
    """1 if the file is there; it must then be complete."""
    path = folder / "model.safetensors"
    if not path.exists():
        return 0
    assert verify_file(path) == []
    return 1
