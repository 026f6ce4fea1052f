"""Makes benchmarks/ importable while a module of this folder runs, as its own scripts see it."""
from __future__ import annotations

import importlib
import sys

import pytest


@pytest.fixture(scope="module")
def bench(repository):
    """Imports modules of benchmarks/ by name."""
    folder = str(repository / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)
