"""coded_linear: what it equals, what it refuses, when it would fuse; the fused kernel through the interpreter."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from vqpack.kernels import capabilities, dispatch, linear
from vqpack.kernels.linear import can_fuse, coded_linear

HALF = torch.float16


def test_interpreted_products_are_close():
    if capabilities.package_version("triton") is None:
        pytest.skip(f"triton {capabilities.package_problem('triton')}")
    script = Path(__file__).with_name("linear_interpreted.py")
    done = subprocess.run([sys.executable, str(script)], env={**os.environ, "TRITON_INTERPRET": "1"},
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all products are close" in done.stdout


@pytest.mark.parametrize("family", ["lut", "additive", "trellis"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_without_a_kernel_it_is_the_linear_of_the_decoded_weight(make, family, dtype):
    part = getattr(make, family)(taps=1, rotation=8, col=True)
    x, bias = torch.randn(2, 3, 32).to(dtype), torch.randn(part.out_features).to(dtype)
    expected = torch.nn.functional.linear(x, dispatch.decode_part(part, dtype=dtype), bias)
    assert torch.equal(coded_linear(x, part, bias), expected)
    assert coded_linear(x[:0], part).shape == (0, 3, part.out_features)


def test_why_it_would_decode_first(make):
    part = make.trellis()
    reasons = {
        "takes 1 to 256 tokens, got 0": can_fuse(part, 0, HALF, "cpu"),
        "takes 1 to 256 tokens, got 257": can_fuse(part, 257, HALF, "cpu"),
        "got 3 taps": can_fuse(make.lut(), 1, HALF, "cpu"),
        "got scales of groups": can_fuse(make.lut(taps=1, group=8), 1, HALF, "cpu"),
        "rotates by blocks up to 1024, got 2048": can_fuse(make.trellis(channels=2048, rotation=2048), 1, HALF, "cpu"),
        "the codes are on cpu, got meta": can_fuse(part, 1, HALF, "meta"),
        "runs on cuda, got cpu": can_fuse(part, 1, HALF, "cpu"),
    }
    for words, reason in reasons.items():
        assert reason is not None and words in reason


def test_what_the_fused_kernel_lacks_is_counted(make, monkeypatch):
    needs = dispatch.Requirements(devices=("cpu",), package="no_such_package")
    monkeypatch.setattr(linear, "FUSED", dispatch.Backend("triton", "no_such_module", needs))
    monkeypatch.setattr(dispatch, "_fallbacks", {})
    coded_linear(torch.ones(1, 32), make.trellis())
    assert dispatch.fallbacks() == {("fused triton", "needs no_such_package: not installed"): 1}


@pytest.mark.parametrize("x,bias,error,words", [
    (torch.ones(1, 31), None, ValueError, r"x must be \[..., 32\]"),
    (torch.ones(()), None, ValueError, r"x must be \[..., 32\]"),
    (torch.ones(1, 32).double(), None, TypeError, "got torch.float64"),
    (torch.ones(1, 32, device="meta"), None, ValueError, "x must be torch.float32 on cpu, got torch.float32 on meta"),
    (torch.ones(1, 32), torch.ones(70).half(), ValueError, "bias must be torch.float32"),
    (torch.ones(1, 32), torch.ones(69), ValueError, r"bias must be \[70\], got \[69\]"),
])
def test_inputs_that_do_not_fit_are_refused(make, x, bias, error, words):
    with pytest.raises(error, match=words):
        coded_linear(x, make.trellis(), bias)
