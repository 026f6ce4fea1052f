"""Decode speed of every family on one 1280 x 10240 layer: `python benchmarks/decode.py [--quick] [--device cuda]`.

Checks a small part of each family against the reference first, bit for bit; nothing is timed on a red gate.
Weights a second, median of the repeats; `fresh` allocates the result, `reused` writes to the same one again.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass

import torch
from alias import RESULTS, load_vqpack, machine

load_vqpack()
from vqpack.kernels import dispatch, parts, reference  # noqa: E402

ROWS, COLS = 10240, 1280
BAR, DEFAULT_BAR = 20e6, 200e6    # weights/s: every path per thread; the default family at 2 and 3 bits in all


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    family: str
    bits: float                 # of codes a weight
    rotation: int
    col: bool
    make: object                # (rows, cols) -> Part


def scales(rows: int, cols: int, col: bool) -> parts.Scales:
    return parts.Scales(0.01, row=torch.randn(rows).half(), col=torch.randn(cols).half() if col else None)


def randint(low: int, high: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randint(low, high, shape, dtype=torch.int64).to(dtype)


def trellis(window, step_bits, vector=1, rotation=0, col=False) -> Case:
    def make(rows, cols):
        codes = randint(-2**31, 2**31, -(-rows // (32 * vector)), step_bits, cols, dtype=torch.int32)
        table = randint(-127, 128, 2**window, vector, dtype=torch.int8)
        return parts.TrellisPart(rows, cols, 1, window, step_bits, vector, 1, codes, table, scales(rows, cols, col),
                                 rotation=rotation)
    return Case(f"trellis L{window}", step_bits / vector, rotation, col, make)


def lut(bits, uniform=False, rotation=0, col=False) -> Case:
    def make(rows, cols):
        codes = randint(0, 256, rows, -(-cols // 8), bits, dtype=torch.uint8)
        return parts.LutPart(rows, cols, 1, bits, codes, scales(rows, cols, col),
                             values=None if uniform else randint(-2000, 2000, 2**bits, dtype=torch.int16),
                             zero_points=randint(0, 2**bits, rows, dtype=torch.uint8) if uniform else None,
                             rotation=rotation)
    return Case("uniform" if uniform else "palette", bits, rotation, col, make)


def additive(num_codebooks, bits=8, group=8, blocks=1, rotation=0, col=False) -> Case:
    def make(rows, cols):
        blocks_here = min(blocks, cols // group)
        codes = randint(0, 256, rows, -(-(-(-cols // group) * num_codebooks) // 8), bits, dtype=torch.uint8)
        books = randint(-2000, 2000, blocks_here, num_codebooks, 2**bits, group, dtype=torch.int16)
        return parts.AdditivePart(rows, cols, 1, bits, group, codes, books, scales(rows, cols, col), rotation=rotation)
    return Case("additive" if blocks == 1 else "product", num_codebooks * bits / group, rotation, col, make)


def cases(quick: bool) -> list[Case]:
    first = [trellis(12, 2), trellis(12, 3), trellis(12, 2, rotation=128), trellis(12, 3, rotation=128)]
    if quick:
        return [*first, lut(3), lut(4, uniform=True), additive(2), additive(1, 6, 2, blocks=32)]
    rates = [(1, 1), (2, 1), (3, 1), (4, 1), (3, 2), (5, 2), (7, 2)]
    return [
        *first, trellis(12, 2, rotation=64), trellis(12, 3, rotation=64), trellis(12, 3, rotation=128, col=True),
        *(trellis(8, *rate) for rate in rates), *(trellis(12, *rate) for rate in rates if rate not in ((2, 1), (3, 1))),
        trellis(8, 2, rotation=128), trellis(12, 5, 2, rotation=128),
        *(lut(bits) for bits in range(1, 9)), lut(3, rotation=128), lut(4, rotation=64, col=True),
        *(lut(bits, uniform=True) for bits in (2, 3, 4, 8)),
        *(additive(books) for books in (1, 2, 3, 4)), additive(2, rotation=128), additive(2, col=True),
        additive(1, 8, 8, blocks=32), additive(1, 8, 4, blocks=32), additive(1, 12, 4),
        *(additive(1, bits, 2, blocks=32) for bits in (4, 6, 8)),
        *(additive(1, bits, 1, blocks=32) for bits in (2, 3, 4, 5, 6)),
    ]


def gate(case: Case, device: str) -> None:
    part = case.make(70, 256)
    for dtype in dispatch.WEIGHTS:
        decoded = dispatch.decode_part(on(part, device), dtype=dtype).cpu()
        if not torch.equal(decoded, reference.decode_part(part, dtype)):
            raise SystemExit(f"{case.family} at {case.bits} bits differs from the reference: nothing is timed")


def on(part: parts.Part, device: str) -> parts.Part:
    def move(record):
        return type(record)(**{name: value.to(device) if isinstance(value, torch.Tensor) else
                               move(value) if isinstance(value, parts.Scales) else value
                               for name, value in record.__dict__.items()})
    return part if device == "cpu" else move(part)


def seconds(part: parts.Part, dtype: torch.dtype, repeats: int, out: torch.Tensor | None) -> list[float]:
    found = []
    for _ in range(repeats + 1):  # the first fills tables and is dropped
        start = time.perf_counter()
        dispatch.decode_part(part, dtype=dtype, out=out)
        if part.codes.is_cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return found[1:]


def measure(case: Case, dtype: torch.dtype, threads: int, repeats: int, device: str) -> dict:
    part = on(case.make(ROWS, COLS), device)
    fresh = seconds(part, dtype, repeats, None)
    reused = seconds(part, dtype, repeats, torch.empty(ROWS, COLS, dtype=dtype, device=device))
    rate = ROWS * COLS / statistics.median(fresh)
    return {"family": case.family, "bits": case.bits, "rotation": case.rotation, "col_scales": case.col,
            "dtype": str(dtype).removeprefix("torch."), "threads": threads,
            "backend": dispatch.choose(part, dtype).name,
            "weights_per_second": round(rate), "per_thread": round(rate / threads),
            "reused_weights_per_second": round(ROWS * COLS / statistics.median(reused)),
            "seconds": [round(min(fresh), 5), round(statistics.median(fresh), 5), round(max(fresh), 5)]}


def verdict(rows: list[dict]) -> list[str]:
    """The two promises, each with the slowest row that bears on it."""
    slowest = min(rows, key=lambda row: row["per_thread"])
    default = [row for row in rows if row["family"] == "trellis L12" and row["bits"] in (2, 3) and not row["rotation"]]
    default = min(default, key=lambda row: row["weights_per_second"])
    return [f"slowest per thread: {slowest['per_thread'] / 1e6:.0f} M/s, {slowest['family']} {slowest['bits']} bits "
            f"(bar {BAR / 1e6:.0f})",
            f"default family at 2 and 3 bits, unrotated: {default['weights_per_second'] / 1e6:.0f} M/s "
            f"(bar {DEFAULT_BAR / 1e6:.0f})"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few cases, nothing written")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    listed, rows = cases(arguments.quick), []
    for case in listed:
        gate(case, arguments.device)
    print(f"{'family':12} bits  rot col dtype     M weights/s  per thread  reused")
    for dtype in (torch.float16,) if arguments.quick else dispatch.WEIGHTS:
        for case in listed:
            row = measure(case, dtype, arguments.threads, 3 if arguments.quick else 7, arguments.device)
            rows.append(row)
            print(f"{row['family']:12} {row['bits']:4g} {row['rotation']:4} {'x' if case.col else ' ':3} "
                  f"{row['dtype']:9} {row['weights_per_second'] / 1e6:11.0f} {row['per_thread'] / 1e6:11.0f} "
                  f"{row['reused_weights_per_second'] / 1e6:7.0f}", flush=True)
    print("\n".join(verdict(rows)))
    if not arguments.quick:
        path = RESULTS / f"decode_{arguments.device}.json"
        path.write_text(json.dumps({"machine": machine(), "shape": [ROWS, COLS], "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
