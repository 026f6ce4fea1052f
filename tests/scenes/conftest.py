"""Makes benchmarks/scenes importable as `scenes`: its scripts expect benchmarks/ on the path."""
from __future__ import annotations

import sys

import pytest


@pytest.fixture(scope="module", autouse=True)
def scenes_package(repository):
    """The package, while a module of this folder runs."""
    folder = str(repository / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
