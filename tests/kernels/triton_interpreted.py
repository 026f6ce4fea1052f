"""Run by test_decode_triton.py in a process of its own: TRITON_INTERPRET must be set before Triton is imported.

Compares every kernel with the reference, bit for bit, in float32 and float16 (the interpreter cannot do bfloat16).
"""
import importlib.util
import sys
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent


def load(name: str, path: Path, **options):
    spec = importlib.util.spec_from_file_location(name, path, **options)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


load("vqpack", FOLDER.parents[1] / "__init__.py", submodule_search_locations=[str(FOLDER.parents[1])])
from vqpack.kernels import decode_triton, reference  # noqa: E402

make = load("part_factory", FOLDER / "conftest.py").PartFactory()


def check(part) -> None:
    truth = reference.decode_part(part)
    rows = part.out_features
    for dtype, bits, start, stop in ((torch.float32, torch.int32, 0, rows),
                                     (torch.float16, torch.int16, rows // 3, rows - 1)):
        out = torch.full((stop - start, part.taps, part.channels), float("nan"), dtype=dtype)
        decode_triton.decode(part, start, stop, out)
        expected = truth[start:stop].to(dtype).view(bits)
        assert torch.equal(out.flatten(1).view(bits), expected), (part, dtype, start, stop)


for bits in range(1, 9):
    check(make.lut(5, 37, 1, bits, col=bits % 2 == 0))
    check(make.lut(4, 30, 2, bits, uniform=True, group=7 if bits % 2 else 0))
check(make.lut(5, 320, 1, 3))  # more columns than one program
check(make.lut(5, 32, 2, 3, rotation=16, col=True))
for bits, group, books, blocks in ((8, 8, 3, 1), (6, 2, 1, 5), (3, 5, 2, 2), (11, 4, 2, 1), (16, 3, 1, 1)):
    check(make.additive(4, 37, 1, bits, group, books, blocks=blocks, scale_group=9 if books == 2 else 0))
check(make.additive(4, 37, 1, 6, 4, 2, codebook_size=40))
check(make.additive(4, 32, 1, 8, 8, 2, rotation=32))
check(make.additive(4, 37, 9, 8, 9, 2, order=1, col=True))  # more columns than one program
check(make.additive(4, 32, 6, 6, 4, 1, order=1, rotation=8, blocks=3, scale_group=7))
for window, step_bits, vector, chain in ((8, 1, 1, 1), (12, 3, 1, 4), (12, 5, 2, 3), (5, 8, 2, 2)):
    check(make.trellis(35 * vector, 11, 1, window, step_bits, vector, chain, col=step_bits == 3))
check(make.trellis(34, 16, 1, 12, 2, 1, 1, rotation=8, col=True))
check(make.trellis(20, 16, 2, 12, 2, 1, 3, group=10))
for family in ("lut", "additive", "trellis"):
    assert decode_triton.self_test(family, torch.device("cpu")) is None
print("all kernels equal the reference")
