"""The Triton trellis encoder against the reference, through Triton's interpreter in a process of its own."""
import importlib.util
import os
import subprocess
import sys

import pytest

SCRIPT = """
import runpy, sys
runpy.run_path(sys.argv[1])
import torch
from vqpack.kernels import viterbi, viterbi_triton

g = torch.Generator().manual_seed(0)
for window, step_bits, vector in ((5, 1, 1), (8, 3, 1), (8, 4, 1), (5, 3, 2), (8, 7, 2), (12, 3, 1), (16, 7, 2)):
    table = (torch.randn(1 << window, vector, generator=g) * 40).round().clamp(-128, 127).to(torch.int8)
    targets = viterbi.fixed_point(torch.randn(2, 35, vector, generator=g) * 60)
    mask = torch.rand(35, vector, generator=g) < 0.85
    states = torch.tensor([0, (1 << window) - 3], dtype=torch.int32)
    expected = viterbi.encode(targets, table, step_bits, mask, backend="reference", states=states)
    kinds = (mask * (1 << torch.arange(vector))).sum(1).to(torch.uint8)
    viterbi_triton.BACK_BYTES = 35 * (1 << (window - step_bits))      # one sequence at a time
    found = viterbi_triton.encode((targets * mask).int().contiguous(), table, step_bits, kinds, states)
    assert torch.equal(found, expected), (window, step_bits, vector)
print("same codes")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_gives_the_references_codes(repository):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(repository / "tests" / "conftest.py")],
                          env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "same codes", done.stderr
