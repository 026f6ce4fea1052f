"""Makes benchmarks/scenes importable as `scenes`: its scripts expect benchmarks/ on the path."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")


@pytest.fixture(scope="session", autouse=True)
def scenes_package():
    """The package, while the tests of this folder run."""
    sys.path.insert(0, BENCHMARKS)
    yield
    sys.path.remove(BENCHMARKS)
