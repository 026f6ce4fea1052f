"""Run by test_linear.py in a process of its own, interpreted: the fused product against the float32 reference.

float16 only: the interpreter cannot do bfloat16. What comes back began as NaN.
"""
import runpy
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
make = runpy.run_path(str(FOLDER / "triton_interpreted.py"))["make"]
FUSED = runpy.run_path(str(FOLDER / "tolerances.py"))["FUSED"]
from vqpack.kernels import linear_triton, reference  # noqa: E402


def check(part, tokens: int, bias: bool = False, programs: int = 0) -> None:
    x = torch.randn(tokens, part.channels, generator=make.generator).half()
    b = torch.randn(part.out_features, generator=make.generator).half() if bias else None
    truth = x.float() @ reference.decode_part(part).t() + (0 if b is None else b.float())
    linear_triton.processors = lambda device: programs
    found = linear_triton.linear(x, part, b)
    assert found.dtype == torch.float16 and found.shape == truth.shape
    far = float((found.float() - truth).abs().max() / truth.abs().max())
    assert far < FUSED[torch.float16], (far, part, tokens, bias, programs)


def poisoned(make_empty):
    def made(*shape, **options):
        tensor = make_empty(*shape, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor
    return made


def main() -> None:
    torch.empty = poisoned(torch.empty)
    for tokens in (1, 5, 16, 17, 130):
        check(make.trellis(70, 70, 1, 12, 3, 1, 4), tokens, bias=tokens == 5)
    check(make.trellis(70, 128, 1, 8, 5, 2, 4, rotation=64, col=True), 7, bias=True)
    check(make.trellis(33, 200, 1, 12, 2, 1, 1, col=True), 3, bias=True, programs=9)      # columns are split
    check(make.trellis(33, 256, 1, 12, 2, 1, 1, rotation=256), 3, programs=100)
    for bits in (2, 3, 7):
        check(make.lut(35, 70, 1, bits), 4)
        check(make.lut(35, 96, 1, bits, uniform=True, rotation=32), 4, bias=True)
    for group, books, order in ((8, 2, 0), (5, 3, 0), (4, 1, 1)):
        check(make.additive(35, 70, 1, 8, group, books, order=order), 4)
    check(make.additive(35, 64, 1, 6, 4, 2, blocks=3, rotation=64, col=True), 4, programs=4)
    large = make.additive(35, 64, 1, 6, 4, 4)
    large.codebooks.fill_(32767)                          # sums that float16 cannot hold
    check(large, 4)
    zero = make.trellis(32, 32, 1, 8, 2, rotation=32)
    assert not linear_triton.linear(torch.zeros(2, 32).half(), zero, None).any()
    for family in ("lut", "additive", "trellis"):
        assert linear_triton.self_test(family, torch.device("cpu")) is None
    print("all products are close")


if __name__ == "__main__":
    main()
