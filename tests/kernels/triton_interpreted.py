"""Run by test_decode_triton.py in a process of its own: TRITON_INTERPRET must be set before Triton is imported.

Compares every kernel with the reference, bit for bit, in float32, float16 and int8 (the interpreter cannot do
bfloat16), whole and from the middle, into memory that is NaN before and must stay so beside the weights.
"""
import dataclasses
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
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.int8: torch.int8}


def check(part, integers: bool = False) -> None:
    """Whole in float32; from the middle, into columns of a wider matrix, in float16 (or int8)."""
    rows, small = part.out_features, torch.int8 if integers else torch.float16
    for dtype, start, stop, beside in ((torch.float32, 0, rows, 0), (small, rows // 3, rows - 1, 3)):
        nothing = 99 if integers and dtype == torch.int8 else float("nan")
        wide = torch.full((stop - start, part.taps, part.channels + 2 * beside), nothing).to(dtype)
        untouched = wide.clone()
        decode_triton.decode(part, start, stop, wide[:, :, beside : beside + part.channels])
        expected = torch.empty(rows, part.taps, part.channels, dtype=dtype)
        reference.decode(part, 0, rows, expected)
        untouched[:, :, beside : beside + part.channels] = expected[start:stop]
        assert torch.equal(wide.view(BITS[dtype]), untouched.view(BITS[dtype])), (part, dtype, start, stop)


def check_group() -> None:
    """Three parts alike, two with a rotation too large for the kernel, one of its own, one at an odd address."""
    parts = [make.trellis(70, 64, 1, 8, 3, 1, 2, rotation=32) for _ in range(3)]
    parts += [make.lut(9, 256, 1, 3, rotation=256) for _ in range(2)] + [make.lut(9, 64, 2, 3), make.lut(9, 64, 2, 3)]
    parts[1] = dataclasses.replace(parts[1], scales=dataclasses.replace(parts[1].scales, gain=-0.5))
    outs = [torch.full((p.out_features, p.taps, p.channels), float("nan")) for p in parts]
    odd = torch.full((outs[-1].numel() + 1,), float("nan"))
    outs[-1] = odd[1:].view(outs[-1].shape)
    calls = []
    run = decode_triton.Launch.run
    decode_triton.Launch.run = lambda call, device: (calls.append(call), run(call, device))
    decode_triton.decode_group(parts, outs)
    decode_triton.Launch.run = run
    assert sorted(call.grid[1:] for call in calls) == [(), (), (), (), (3,)], [call.grid for call in calls]
    for part, out in zip(parts, outs):
        assert torch.equal(out.flatten(1).view(torch.int32), reference.decode_part(part).view(torch.int32))


def main() -> None:
    for bits in range(1, 9):
        check(make.lut(5, 37, 1, bits, col=bits % 2 == 0))
        check(make.lut(4, 30, 2, bits, uniform=True, group=7 if bits % 2 else 0), integers=bits < 8)
    check(make.lut(19, 320, 1, 3))  # more rows and columns than one program
    check(make.lut(5, 32, 2, 3, rotation=16, col=True))
    check(make.lut(70, 128, 1, 4, uniform=True, rotation=128, group=24))
    for bits, group, books, blocks in ((8, 8, 3, 1), (6, 2, 1, 5), (3, 5, 2, 2), (11, 4, 2, 1), (16, 3, 1, 1),
                                       (12, 64, 3, 1), (4, 512, 1, 1)):
        check(make.additive(4, 37, 1, bits, group, books, blocks=blocks, scale_group=9 if books == 2 else 0))
    check(make.additive(4, 37, 1, 6, 4, 2, codebook_size=40))
    short = make.additive(4, 37, 1, 6, 4, 2)                     # codes beyond their book, and books after it in memory
    check(dataclasses.replace(short, codebooks=short.codebooks[:, :, :40].contiguous()))
    check(make.additive(4, 32, 1, 8, 8, 2, rotation=32))
    check(make.additive(4, 256, 1, 8, 8, 1, rotation=256))  # a block too large for the kernel's matrix
    check(make.additive(4, 37, 9, 8, 9, 2, order=1, col=True))  # more columns than one program
    check(make.additive(4, 32, 6, 6, 4, 1, order=1, rotation=8, blocks=3, scale_group=7))
    for window, step_bits, vector, chain in ((8, 1, 1, 1), (12, 3, 1, 4), (12, 5, 2, 3), (5, 8, 2, 2), (16, 7, 1, 5),
                                             (12, 2, 1, 1), (16, 4, 2, 1), (12, 6, 1, 2)):
        check(make.trellis(35 * vector, 11, 1, window, step_bits, vector, chain, col=step_bits == 3), integers=True)
    check(make.trellis(150, 16, 1, 12, 2, 1, 1, rotation=8, col=True))  # more rows than one program
    check(make.trellis(20, 16, 2, 12, 2, 1, 3, group=10))
    check(make.trellis(70, 128, 2, 8, 3, 2, 3, rotation=128), integers=True)
    check(make.trellis(33, 64, 3, 8, 3, 1, 3, rotation=64, group=10), integers=True)
    extreme = make.trellis(64, 128, 1, 8, 3, 1, rotation=128)
    extreme.table.fill_(-128)
    check(extreme)
    extreme = make.additive(4, 128, 1, 8, 8, 3, rotation=128)
    extreme.codebooks[...] = torch.tensor([32767, -32768, 40, 12345]).to(torch.int16).repeat(2)
    check(extreme)
    check_group()
    for family in ("lut", "additive", "trellis"):
        assert decode_triton.self_test(family, torch.device("cpu")) is None
    print("all kernels equal the reference")


if __name__ == "__main__":
    main()
