"""`vqpack compare` stopped: a process that is killed goes on where it was, what was finished is already a report."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from vqpack.vq_core.compare import draw
from vqpack.vq_core.compare.run import compare
from vqpack.vq_core.errors import Interrupted
from vqpack.vq_core.progress import Progress

CHILD = """
import importlib.util, os, sys
root = sys.argv[1]
spec = importlib.util.spec_from_file_location("vqpack", os.path.join(root, "__init__.py"),
                                              submodule_search_locations=[root])
sys.modules["vqpack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["vqpack"])
from vqpack.vq_core.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_process_goes_on_where_it_was(repository, testbed, files, tmp_path, quick, monkeypatch):
    arguments = ["compare", testbed, files["eight"], "-o", tmp_path, "--count", quick["count"], "--steps",
                 quick["steps"]]
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(repository), *map(str, arguments)],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while not list(tmp_path.rglob("A-*.npz")):
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept, drawn, real = len(list(tmp_path.rglob("*.npz"))), [], draw.trajectory.sample
    assert kept and not list(tmp_path.glob("*.html"))
    monkeypatch.setattr(draw.trajectory, "sample", lambda *a, **k: drawn.append(a[1]) or real(*a, **k))
    done = compare([testbed, files["eight"]], tmp_path, **quick)
    assert len(drawn) == 2 * quick["count"] - kept and done.data["complete"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.html", "compare.json"]


def test_what_was_finished_before_a_stop_is_already_a_report(testbed, files, tmp_path):
    progress = Progress(should_stop=lambda: progress.detail.startswith("C:"))
    with pytest.raises(Interrupted):
        compare([testbed, files["eight"], files["two"]], tmp_path, count=1, steps=1, progress=progress)
    said = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    assert not said["complete"] and said["not_drawn"] == ["two.safetensors"]
    assert [c["letter"] for c in said["checkpoints"]] == ["A", "B"] and (tmp_path / "compare.html").is_file()
