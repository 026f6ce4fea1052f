"""Triton kernels against the reference, through the interpreter, in a process of their own."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vqpack.kernels import capabilities


def test_interpreted_kernels_equal_the_reference():
    if capabilities.package_version("triton") is None:
        pytest.skip(f"triton {capabilities.package_problem('triton')}")
    script = Path(__file__).with_name("triton_interpreted.py")
    done = subprocess.run([sys.executable, str(script)], env={**os.environ, "TRITON_INTERPRET": "1"},
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all kernels equal the reference" in done.stdout
