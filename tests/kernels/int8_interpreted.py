"""Run by test_int8.py in a process of its own, interpreted: the two int8 kernels against their torch reference.

float16 only: the interpreter cannot do bfloat16. What comes back began as NaN or as an integer that no code gives.
"""
import runpy
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
make = runpy.run_path(str(FOLDER / "triton_interpreted.py"))["make"]
from vqpack.kernels import dispatch, int8_torch, int8_triton  # noqa: E402

LARGEST = 2e-3                             # of a result: its float16, four half steps


def check(part, tokens: int, bits: int = 8, bias: bool = False, spread: float = 1.0) -> None:
    integers = dispatch.decode_part(part, dtype=torch.int8)
    x = (torch.randn(tokens, part.channels, generator=make.generator) * spread).half()
    x[:tokens // 4] = 0
    b = torch.randn(part.out_features, generator=make.generator).half() if bias else None
    q, scale = torch.full(x.shape, -128, dtype=torch.int8), torch.full((tokens,), torch.nan)
    int8_triton.launch_rounding(x, part, bits, q, scale).run(x.device)
    want_q, want_scale = int8_torch.quantize(x, part, bits)
    apart = (q.int() - want_q.int()).abs()
    # column scales round x to float16 once more, each entry by up to 2^-11
    near, flips = (1e-3, 0.02) if part.scales.col is not None else (1e-5, 1e-3)
    assert torch.allclose(scale, want_scale, rtol=near), (part, tokens)
    assert int(apart.max()) <= 1 and float(apart.float().mean()) < flips, (float(apart.float().mean()), part)
    found, want = int8_triton.linear(x, part, integers, b, bits), int8_torch.linear(x.float(), part, integers, b, bits)
    assert found.dtype == torch.float16 and found.shape == want.shape and not found.isnan().any()
    far = float((found.float() - want).abs().max() / want.abs().max())
    assert far < LARGEST + 2 * near + 1 / 2 ** (bits + 3), (far, part, tokens)


def main() -> None:
    for tokens in (1, 16, 17, 130):
        check(make.trellis(70, 70, 1, 12, 3, 1, 4), tokens, bias=tokens == 17)
    check(make.trellis(70, 128, 1, 8, 5, 2, 4, rotation=64), 21, bias=True)
    check(make.trellis(33, 256, 1, 12, 2, 1, 1, rotation=128, col=True), 5)
    check(make.trellis(140, 384, 1, 12, 2, 1, 1, rotation=128), 5, bits=6)
    check(make.lut(35, 96, 1, 4, uniform=True, rotation=32), 4, bias=True, spread=1e-4)
    part = make.trellis(32, 64, 1, 8, 2, rotation=32)
    integers = dispatch.decode_part(part, dtype=torch.int8)
    x = torch.ones(3, 64).half()
    x[1, 5], x[2, 7] = float("nan"), float("inf")
    found = int8_triton.linear(x, part, integers, None, 8)
    assert found[1:].isnan().all() and not found[0].isnan().any()
    for family in ("lut", "trellis"):
        assert int8_triton.self_test(family, torch.device("cpu")) is None, int8_triton.self_test(family, "cpu")
    print("all int8 products are close")


if __name__ == "__main__":
    main()
