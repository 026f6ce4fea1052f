"""What every test shares: the package alias `vqpack`, threads, poisoned memory, and the count of ComfyUI tests.

The repository's root must never be on sys.path: its `nodes` and `kernels` are also names of other packages.
"""
from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _load_alias() -> None:
    """Make the root folder importable as `vqpack`, and as nothing else."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or os.getcwd()).resolve() != ROOT]
    spec = importlib.util.spec_from_file_location(
        "vqpack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["vqpack"] = module
    spec.loader.exec_module(module)


_load_alias()


def pytest_configure(config):
    """Few threads: two busy-waiting OpenMP threads on a shared core cost more than they bring."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(2, os.cpu_count() or 1)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """In a process of pytest-xdist: a folder's tests stay together, for they share what they make once for a run.

    Those of a file in tests/comfy do, and they come first: they are the longest, and their processes their own.
    """
    if not hasattr(config, "workerinput"):
        return
    items.sort(key=lambda item: not item.nodeid.startswith("tests/comfy/"))
    for item in items:
        path = item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(path if path.startswith("tests/comfy/") else path.rpartition("/")[0]))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def testbed(repository) -> Path:
    """The folder of the small trained SDXL-architecture pipeline."""
    return repository / "testbed" / "pipe"


@pytest.fixture(scope="session")
def asked():
    """asked() -> a Progress that notes the longest time between two questions whether to stop: `longest()`, seconds.

    Processor time: a stop takes effect that late whatever else the machine does. With one thread that codes.
    """
    from vqpack.vq_core.progress import Progress

    class Asked(Progress):
        def __init__(self):
            super().__init__(should_stop=self._note)
            self._last, self._longest = time.process_time(), 0.0

        def _note(self) -> bool:
            now = time.process_time()
            self._last, self._longest = now, max(self._longest, now - self._last)
            return False

        def longest(self) -> float:
            self._note()                   # from the last question to now
            return self._longest

    return Asked


@pytest.fixture
def poisoned_empty(monkeypatch):
    """torch.empty and empty_like give NaN (or the largest integer): reading memory never written shows."""
    import torch

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.is_floating_point():
                return tensor.fill_(float("nan"))
            if tensor.dtype == torch.bool or tensor.is_complex():
                return tensor
            return tensor.fill_(torch.iinfo(tensor.dtype).max)
        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))


def pytest_terminal_summary(terminalreporter):
    """One line that says how many ComfyUI tests ran, so that a run without ComfyUI cannot pass for one with it."""
    counts = {}
    for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed"):
        reports = terminalreporter.stats.get(outcome, [])
        counts[outcome] = sum(1 for report in reports if _is_comfy(report))
    ran = sum(counts.values()) - counts["skipped"]
    terminalreporter.write_line(f"ComfyUI tests: {ran} ran, {counts['skipped']} skipped")


def _is_comfy(report) -> bool:
    if getattr(report, "when", "call") == "teardown":
        return False
    return getattr(report, "nodeid", "").replace("\\", "/").startswith("tests/comfy/")
