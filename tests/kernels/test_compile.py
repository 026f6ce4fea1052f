"""Triton's kernels compile for every architecture without spilling: a few here, all of them in compile_check.py."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vqpack.kernels import capabilities


def check(*options: str) -> subprocess.CompletedProcess:
    if capabilities.package_version("triton") is None:
        pytest.skip(f"triton {capabilities.package_problem('triton')}")
    script = Path(__file__).with_name("compile_check.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, str(script), *options], env=environment, capture_output=True, text=True,
                          timeout=600, check=False)


def test_a_few_kernels_compile_within_their_limits():
    done = check("--quick")
    if done.stdout.startswith("SKIPPED"):
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 compiled within their limits" in done.stdout


def test_limits_are_held():
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("compile_check", Path(__file__).with_name("compile_check.py"))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    row = {"kernel": "decode palette 4 bits rotated 128", "target": "sm_90", "registers": 168, "stack": 0, "load": 16,
           "store": 16, "tensor_cores": True}
    assert module.broken(row) == []
    for change, words in (({"registers": 999}, "999 registers"), ({"stack": 8}, "8 bytes of stack, 0 allowed"),
                          ({"load": 4}, "loads at most 4 bytes"), ({"store": 2}, "stores at most 2 bytes"),
                          ({"tensor_cores": False}, "no tensor cores"), ({"error": "Oh"}, "does not compile: Oh")):
        assert words in module.broken({**row, **change})[0]
